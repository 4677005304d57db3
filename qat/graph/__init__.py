"""Reads a torch module into a graph of hardware layers."""

from qat.graph.nodes import Graph, Node
from qat.graph.tracing import read_graph, trace

__all__ = ["Graph", "Node", "read_graph", "trace"]
