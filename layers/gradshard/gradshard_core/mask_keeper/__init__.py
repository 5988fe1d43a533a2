"""The mask keeper: a second, small application that sums masks and sees no update.

Only its own functions have the packages that ``gradshard_core.masking`` needs. The aggregator's
import :mod:`gradshard_core.mask_keeper.request` alone.
"""
