"""Partial updates and slow devices: SALF, participation, layers, AMBLE's assignments."""
