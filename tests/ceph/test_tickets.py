"""Tickets on Ceph, which verifies presigned URLs."""

from tests.integration.test_tickets import *  # noqa: F403
