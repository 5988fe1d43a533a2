"""The aggregator measured against its limit, against others, and on paper."""
