"""The rows: each is a program that does its work once and prints what it took."""
