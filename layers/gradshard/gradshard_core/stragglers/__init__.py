"""Partial updates and slow devices: SALF, which layers clients reach, AMBLE's assignments."""
