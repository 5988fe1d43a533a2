"""The time, memory, requests and money that a round takes, and the figures behind them."""
