"""The tests that Ceph 16 cannot pass, each with what it does otherwise than AWS."""

CONDITIONAL_WRITE = (
    "in a bucket with versions it holds If-None-Match against the object that is being written, "
    "and If-Match too"
)

NO_CHECKSUM = "it keeps no CRC-64/NVME"

GAPS: dict[str, str] = {
    "test_a_second_time": CONDITIONAL_WRITE,
    "test_a_damaged_update_whose_answer_was_lost_is_told": CONDITIONAL_WRITE,
    "test_s3_makes_an_update_once": CONDITIONAL_WRITE,
    "test_an_upload_that_breaks_is_sent_again": NO_CHECKSUM,
    "test_a_broken_request_is_tried_again[damage]": NO_CHECKSUM,
    "test_the_same_update_again_is_no_error_and_another_is": NO_CHECKSUM,
}
HANGS = frozenset(
    {
        "test_s3_rejects_another_length",
        "test_s3_rejects_another_place",
        "test_s3_rejects_another_method",
        "test_s3_rejects_a_later_time",
    }
)
"""They wait for ever: it rejects a large PUT, reads no more of it, and keeps the connection."""
