"""Private sums: clipping, noise, trees of noise, secret draws of clients."""
