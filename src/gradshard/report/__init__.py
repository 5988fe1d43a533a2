"""A page about rounds: what they were, who took part, what they took.

``facts`` makes JSON of what is known of a round, ``page`` makes HTML of that, with the pictures of
``charts`` and the elements of ``markup``. None of them knows of AWS.
"""
