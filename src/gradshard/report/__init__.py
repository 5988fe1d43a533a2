"""The page of ``gradshard report``: one HTML file about rounds, without scripts and network.

``round_facts`` reads a round into JSON, and ``page`` writes HTML from that JSON alone:

- ``summary_sentence``: one sentence about each round, at the top of the page;
- ``comparison``: one table about several rounds;
- ``round_section`` and ``parts``: what the page says about one round;
- ``markup``, ``tables``, ``charts``, ``style``: elements, tables, drawings, the style sheet.
"""
