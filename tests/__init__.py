"""Tests of the application, the packages, the documentation and the examples."""

import os

# As the template gives it to every function. numpy reads it when it is imported, so it is set here.
# Threads that wait for a product keep the processors of other tests busy.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
