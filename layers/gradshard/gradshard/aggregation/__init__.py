"""The weighted sum over byte ranges: kernel, arithmetic, order of additions, sharding, topologies."""
