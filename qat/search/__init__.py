"""Search for the configuration with the best accuracy that fits given hardware budgets.

Knows nothing of torch modules: an evaluator turns a configuration into metrics, a cost function turns choices into
exact hardware costs.

```
trial <- space <- noise <- sensitivity <- surrogate <- acquisition <- proposer <- loop
trial <- space <- remaining <- proposer
trial <- space <- store <----------------------------------------------------------┘
```
"""
