"""Who is drawn: the same whenever it is drawn, all as often, and silent clients less often."""

from collections import Counter

from gradshard_core.trainings.client_sampling import draw

MEMBERS = [f"c{number}" for number in range(20)]


def test_a_draw_depends_on_seed_and_members_and_not_on_their_order() -> None:
    drawn = draw(MEMBERS, 5, seed="1", silent={})
    assert drawn == draw(reversed(MEMBERS), 5, seed="1", silent={})
    assert drawn != draw(MEMBERS, 5, seed="2", silent={})
    assert len(set(drawn)) == 5
    assert list(drawn) == sorted(drawn)


def test_all_clients_are_drawn_as_often() -> None:
    counts = Counter(c for n in range(4000) for c in draw(MEMBERS, 5, seed=str(n), silent={}))
    # Binomial with p = 1/4: the deviation is 27, and 5 of them are hardly ever exceeded.
    assert all(abs(counts[client] - 1000) < 140 for client in MEMBERS)


def test_a_silent_client_is_drawn_less_often_in_proportion() -> None:
    """One of each kind: for a draw of one, the probabilities are the weights' shares."""
    silent = {"b": 1, "c": 3, "d": 50}
    members = ["a", "b", "c", "d"]
    counts = Counter(draw(members, 1, seed=str(n), silent=silent)[0] for n in range(20_000))
    weights = {"a": 1, "b": 1 / 2, "c": 1 / 4, "d": 1 / 10}
    for client, weight in weights.items():
        expected = 20_000 * weight / sum(weights.values())
        assert abs(counts[client] - expected) < 5 * expected**0.5
