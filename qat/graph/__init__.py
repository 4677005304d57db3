"""Reads a torch module into a graph of hardware layers."""

from qat.graph.nodes import BatchNorm, Graph, Node
from qat.graph.tracing import read_graph, trace

__all__ = ["BatchNorm", "Graph", "Node", "read_graph", "trace"]
