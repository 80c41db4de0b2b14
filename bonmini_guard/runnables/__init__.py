"""The faces of a guard in LangChain, and the one guard behind them."""
