"""Looks at claims while seeds are added. Oracles: closed forms of the spending, simulated tables, today's numbers."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from scipy import special, stats

from pforce.base.console import make_console
from pforce.base.errors import FieldError
from pforce.orchestration.axes import Axis
from pforce.orchestration.growth import keep_sweep
from pforce.orchestration.looks import looks_with, plan_notes
from pforce.orchestration.options import Options
from pforce.orchestration.plan import Plan, plan
from pforce.orchestration.report import Source, section_of
from pforce.orchestration.script import run_sweep
from pforce.orchestration.sweep import Sweep
from pforce.orchestration.sweep_report import Comparison, print_report
from pforce.records.exchange import import_storage
from pforce.records.looks import Look, note_look, pair_of, read_looks
from pforce.results.looks import GAMMAS, LookedAt, corrected, increments, level_of, levels, looks_at, spent
from pforce.results.statistics import Claim, judge, look_of, sentences
from pforce.storage import Storage
from tests.results.conftest import known
from tests.results.test_report import result
from tests.support.buckets import KEYS
from tests.training.conftest import tiny

AT = LookedAt
QUIET = make_console(quiet=True)


def claims_at(differences: np.ndarray) -> list[Claim]:
    """Claims with one row of differences each."""
    pairs = [{seed: f"{number:016x}{seed:016x}" for seed in range(row.size)} for number, row in enumerate(differences)]
    zeros = dict.fromkeys(range(differences.shape[1]), 0.0)
    return [
        Claim("fd", f"row {number}", "base", dict(enumerate(row)), zeros, pairs=pairs[number])
        for number, row in enumerate(differences)
    ]


def looked_through(differences: np.ndarray, schedule: tuple[int, ...], planned: int):
    """Verdicts of each look, as a table gives them."""
    looks: list[Look] = []
    for n in schedule:
        claims = claims_at(differences[:, :n])
        looks.append(look_of(claims, planned))
        yield judge(claims, looks=looks)


def test_the_spending_is_that_of_lan_and_demets():
    """a(1/4) at 5 %: 2 − 2 Φ(1.96 · 2); all of it from the planned number on, nothing before the first seed."""
    assert spent(0.25, 0.05) == pytest.approx(2 * stats.norm.sf(2 * stats.norm.isf(0.025)))
    assert (float(spent(0.0, 0.05)), float(spent(1.0, 0.05)), float(spent(1.5, 0.05))) == (0.0, 0.05, 0.05)
    gamma = np.array([0.05, 0.01])
    parts = list(increments((AT(3, 3, 12), AT(5, 5, 12), AT(12, 12, 12)), gamma))
    assert sum(parts) == pytest.approx(gamma)
    assert parts[0] == pytest.approx(spent(0.25, gamma))
    assert all((part >= 0).all() for part in parts)


def test_levels_of_few_seeds_are_crossed_as_often_as_is_spent():
    """400,000 simulated claims without effect; the second level of (3, 12) by its definition, an integral."""
    schedule = (3, 5, 8, 12)
    looked = tuple(AT(n, n, 12) for n in schedule)
    at = int(np.argmin(abs(GAMMAS - 0.05)))
    bounds, spends = levels(looked)[:, at], [float(part[at]) for part in increments(looked, GAMMAS)]
    draws = np.random.default_rng(0).normal(size=(400_000, 12))
    left = np.ones(len(draws), bool)
    for n, bound, spend in zip(schedule, bounds, spends, strict=True):
        x = draws[:, :n]
        t = x.mean(1) / (x.std(1, ddof=1) / np.sqrt(n))
        crossed = left & (2 * special.stdtr(n - 1, -abs(t)) <= bound)
        assert crossed.mean() == pytest.approx(spend, abs=4 * np.sqrt(spend / len(draws)))
        left &= ~crossed
    assert (~left).mean() == pytest.approx(0.05, abs=0.0014)


def test_levels_grow_with_the_error_and_the_correction_is_their_inverse():
    looked = (AT(3, 3, 8), AT(5, 5, 8), AT(8, 8, 8))
    for several in (looked[:1], looked[:2], looked):
        assert (np.diff(levels(several)[-1]) >= 0).all()
        for gamma in (0.05, 0.05 / 3, 0.01):
            assert corrected(level_of(several, gamma), several) == pytest.approx(gamma, rel=1e-3)
    assert corrected(0.0, looked) < 1e-7
    assert corrected(1.0, looked) == 1.0


@pytest.mark.parametrize(("first", "claims", "tables"), [(2, 1, 400), (3, 3, 150), (3, 6, 100)])
def test_two_seeds_more_until_decided_call_few_null_tables_different(first, claims, tables):
    """Up to 12 planned seeds, by the code that judges: at most 5 %, with three standard errors. As if each look were
    the only one, 15 % and more are called different (`analysis/results/looks.md`), which these tables would show."""
    schedule, generator = (*range(first, 12, 2), 12), np.random.default_rng(3)
    wrong = naive = 0
    for _ in range(tables):
        differences = generator.normal(size=(claims, 12))
        decided = (any(v.word != "not distinguishable" for v in look) for look in
                   looked_through(differences, schedule, 12))  # fmt: skip
        wrong += any(decided)
        naive += any(v.word != "not distinguishable" for n in schedule for v in judge(claims_at(differences[:, :n])))
    assert wrong / tables <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / tables)
    assert naive / tables > 0.1


def test_what_is_added_beyond_the_plan_decides_nothing():
    """Planned 3, looked at 3, then 5 and 12: each table ends as its first look, however clear the further seeds are."""
    generator = np.random.default_rng(4)
    for _ in range(20):
        start = abs(generator.normal(size=(3, 1))) + generator.normal(0.0, 0.5, size=(3, 3))
        start *= np.sign(start.mean(axis=1, keepdims=True))  # a difference that turns is no longer decided
        first, *later = looked_through(np.concatenate([start, np.full((3, 9), 5.0)], axis=1), (3, 5, 12), 3)
        assert [[v.p_holm for v in verdicts] for verdicts in later] == [[v.p_holm for v in first]] * 2
    for verdict in later[-1]:
        assert verdict.difference.n == 12
        assert verdict.sentence.endswith("; this p is of the 3 planned seeds)")


def test_seeds_beyond_the_plan_after_an_early_look_leave_the_lowest_ones_to_decide():
    """Looked at 3 of 5, then at 9: as a second look at seeds 0 … 4."""
    differences = np.random.default_rng(5).normal(1.0, 1.0, size=(1, 9))
    *_, (beyond,) = looked_through(differences, (3, 9), 5)
    *_, (whole,) = looked_through(differences, (3, 5), 5)
    assert (beyond.p, beyond.difference.n) == (whole.p, 9)


def test_one_look_at_the_planned_seeds_is_the_t_test_bit_for_bit():
    differences = np.random.default_rng(6).normal(0.8, 1.0, size=(6, 5))
    (looked,) = looked_through(differences, (5,), 5)
    plain = judge(claims_at(differences))
    assert [(v.p, v.p_holm, v.word, v.claims, v.sentence) for v in looked] == [
        (v.p, v.p_holm, v.word, v.claims, v.sentence) for v in plain
    ]
    (more,) = looked_through(differences, (5,), 4)  # more than planned from the start: nothing was seen before
    assert [v.p_holm for v in more] == [v.p_holm for v in plain]


def test_a_decided_claim_stays_so_unless_its_difference_turns():
    differences = np.array([[2.0, 2.1, 1.9, 2.05, 1.95, 2.0, 9.0, 0.1, 5.0]])
    early, late = looked_through(differences, (6, 9), 12)
    assert (early[0].word, late[0].word) == ("worse", "worse")
    assert late[0].p == early[0].p < 0.01
    assert "; second look, at 9 of 12 planned seeds, at level 0.0" in late[0].sentence
    assert late[0].sentence.endswith("; this p is of the first look, at 6 seeds)")
    differences[0, 6:] = -30.0
    assert list(looked_through(differences, (6, 9), 12))[1][0].word == "not distinguishable"


def test_claims_that_were_looked_at_together_share_the_error_afterwards():
    """Six were looked at; choosing the best of them alone does not undo the correction."""
    claims = claims_at(np.random.default_rng(7).normal(0.9, 1.0, size=(6, 5)))
    looks = [look_of(claims, 5)]
    together = judge(claims, looks=looks)
    best = min(range(6), key=lambda number: together[number].p)
    (alone,) = judge([claims[best]], looks=looks)
    assert (alone.p_holm, alone.claims) == (together[best].p_holm, 6)


def test_looks_that_are_not_nested_spend_as_if_they_had_nothing_in_common():
    """Seeds 0, 1, 2, then 3, 4, 5 of six: the second look's level is what it spends."""
    pairs = {seed: f"{seed:032x}" for seed in range(6)}
    first, second = (frozenset(pairs[seed] for seed in some) for some in ((0, 1, 2), (3, 4, 5)))
    (at, _), = looks_at({seed: pairs[seed] for seed in (3, 4, 5)}, [Look(6, (first,)), Look(6, (second,))])  # fmt: skip
    assert at == AT(3, 3, 6), "the first look was at other pairs: another claim"
    both = {seed: pairs[seed] for seed in (2, 3, 4, 5)}
    found = [at for at, _ in looks_at(both, [Look(6, (first,)), Look(6, (frozenset(both.values()),))])]
    assert found == [AT(3, 3, 6), AT(4, 6, 6, nested=False)]
    assert level_of(tuple(found), 0.05) == pytest.approx(0.05 - float(spent(0.5, 0.05)))


def a_look(*claims: int, seeds: int = 3, planned: int = 5) -> Look:
    return Look(planned, tuple(frozenset(f"{claim:016x}{seed:016x}" for seed in range(seeds)) for claim in claims))


def test_the_same_data_are_one_look(tmp_path):
    storage, said = Storage.open(tmp_path), []
    assert read_looks(storage, "s", said.append) == []
    assert len(note_look(storage, "s", a_look(1, 2), said.append)) == 1
    assert len(note_look(storage, "s", a_look(2, 1), said.append)) == 1
    assert len(note_look(storage, "s", a_look(2), said.append)) == 1, "one of the two claims is nothing new"
    assert len(note_look(storage, "s", a_look(1, 2, seeds=5), said.append)) == 2
    assert len(note_look(storage, "s", Look(5, ()), said.append)) == 2, "nothing was compared"
    (first, second) = read_looks(storage, "s", said.append)
    assert (first.claims, second.seeds, second.planned) == (a_look(1, 2).claims, 5, 5)
    assert sorted(path.name for path in tmp_path.rglob("*.json")) == ["001.json", "002.json"]
    assert read_looks(storage, "other", said.append) == said == []


def test_a_pair_is_known_whichever_side_is_the_baseline():
    assert pair_of(("fd", "fd"), ("a" * 32, "b" * 32)) == pair_of(("fd", "fd"), ("b" * 32, "a" * 32))
    assert pair_of(("fd", "kd"), ("a" * 32, "b" * 32)) != pair_of(("kd", "fd"), ("a" * 32, "b" * 32))


def test_of_commands_that_look_at_once_each_finds_its_place(tmp_path):
    """Eight, of which four see the same."""
    storage, said = Storage.open(tmp_path), []
    looks = [a_look(1, seeds=number) for number in (2, 3, 4, 5, 5, 5, 5, 6)]
    start = threading.Barrier(len(looks))

    def run(look: Look) -> None:
        start.wait()
        note_look(storage, "s", look, said.append)

    threads = [threading.Thread(target=run, args=(look,)) for look in looks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(look.seeds for look in read_looks(storage, "s", said.append)) == [2, 3, 4, 5, 6]
    assert said == []


def test_looks_lie_in_the_bucket_that_two_machines_share(server, tmp_path, monkeypatch):
    """A real S3 server; two caches stand for two machines."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    for machine, look in (("one", a_look(1)), ("two", a_look(1)), ("two", a_look(1, seeds=5)), ("one", a_look(2))):
        monkeypatch.setenv("PFORCE_CACHE", str(tmp_path / machine))
        found = note_look(Storage.open(server.uri("bucket/looks")), "s", look, said.append)
    assert [each.seeds for each in found] == [3, 5, 3]
    assert {key.rpartition("/")[2] for key in server.keys("bucket", "looks/sweeps/s/looks/")} == {
        "001.json", "002.json", "003.json",
    }  # fmt: skip
    assert said == []


HOSTILE = {
    "no JSON": b"\x00",
    "nothing": b"",
    "a list": b"[]",
    "deep": b'{"a":' * 100 + b"1" + b"}" * 100,
    "too large": b" " * (1 << 21),
}
CHANGES = [
    {"planned": 0}, {"planned": True}, {"planned": 1e9}, {"planned": None}, {"claims": []}, {"claims": [[]]},
    {"claims": [["../../etc"]]}, {"claims": [[1]]}, {"claims": {"a": 1}}, {"claims": [["a" * 32]] * 65},
    {"time": "now"}, {"time": -1}, {"metric": 3}, {"metric": "m" * 999}, {"format": 2},
]  # fmt: skip


@pytest.mark.parametrize("content", [*HOSTILE, *range(len(CHANGES))], ids=str)
def test_a_damaged_look_is_reported_left_out_and_keeps_its_number(content, tmp_path):
    storage, said = Storage.open(tmp_path), []
    note_look(storage, "s", a_look(1), said.append)
    path = tmp_path / "sweeps" / "s" / "looks" / "001.json"
    if isinstance(content, int):
        from pforce.base.files import digest

        data = {**json.loads(path.read_text()), **CHANGES[content]}
        data.pop("checksum")
        path.write_text(json.dumps({**data, "checksum": digest("look", data)}))
    else:
        path.write_bytes(HOSTILE[content])
    before = path.read_bytes()
    assert len(note_look(storage, "s", a_look(1, seeds=5), said.append)) == 1
    assert "is damaged" in said[0]
    assert "is not counted" in said[0]
    assert path.read_bytes() == before
    assert (path.parent / "002.json").exists()


def test_a_number_that_was_changed_by_hand_is_damage(tmp_path):
    storage, said = Storage.open(tmp_path), []
    note_look(storage, "s", a_look(1), said.append)
    path = tmp_path / "sweeps" / "s" / "looks" / "001.json"
    path.write_text(path.read_text().replace('"planned": 5', '"planned": 50'))
    assert read_looks(storage, "s", said.append) == []
    assert "checksum" in said[0]


def test_a_look_that_cannot_be_recorded_is_said(tmp_path):
    (tmp_path / "sweeps").write_text("a file where the folder would be")
    said: list[str] = []
    claims = claims_at(np.ones((1, 3)))
    (look,) = looks_with(Storage.open(tmp_path), "s", claims, 3, said.append, shown=True)
    assert look.seeds == 3
    assert "cannot be recorded" in said[0]


SIGMAS = Axis("timesteps.sigma", (0.2, 0.6))
VALUES = {0.2: (6.0, 6.3, 6.1, 6.2, 6.35), 0.6: (5.1, 5.1, 5.5, 5.2, 5.3)}


def planned_of(folder, seeds: int) -> Plan:
    """A sweep with a finished cell per sigma and seed."""
    sweep, options, quiet = Sweep("s", tiny(6), (SIGMAS,), tuple(range(seeds))), Options(storage=str(folder)), QUIET
    planned = plan(sweep, options, quiet)
    keep_sweep(planned)
    for item in planned.missing:
        distance = VALUES[item.experiment.timesteps.sigma][item.experiment.seed]
        known(item, result(distance), planned.ledger)
    return planned


def shown(planned: Plan, capsys, **comparison) -> tuple[str, str]:
    """The note on the plan, and the only claim, of a sweep's table on the terminal."""
    capsys.readouterr()
    print_report(planned, make_console(), comparison=Comparison(**comparison))
    lines = capsys.readouterr().out.splitlines()
    (note,) = (line.removeprefix("note: ") for line in lines if line.startswith("note: planned"))
    (claim,) = (line.strip() for line in lines if line.startswith("  fd/openmoji"))
    return note, claim


@pytest.mark.usefixtures("wide")
def test_a_table_states_its_plan_its_looks_and_their_levels(tmp_path, capsys):
    """Records, looks and table are real; only the numbers are chosen. 3 of 5 planned seeds, again, all 5, the page."""
    three = planned_of(tmp_path, 3)
    note, claim = shown(three, capsys, planned_seeds=5)
    assert note == "planned 5 seeds; looked at 3 seeds"
    assert claim.endswith("; first look, at 3 of 5 planned seeds, at level 0.011)")
    p = stats.ttest_rel(VALUES[0.2][:3], VALUES[0.6][:3]).pvalue
    assert f"p = {2 * stats.norm.sf(stats.norm.isf(p / 2) * np.sqrt(3 / 5)):.2g};" in claim
    assert shown(three, capsys) == (note, claim), "nothing new is seen"
    note, claim = shown(planned_of(tmp_path, 5), capsys)
    assert note == "planned 5 seeds; looked at 3 and 5 seeds"
    assert "sigma 0.2 is worse than sigma 0.6" in claim
    assert "; second look, at level 0.04" in claim
    storage = Storage.open(tmp_path)
    section = section_of("s", Source(storage, print))
    assert section.report is not None
    assert note in section.report.notes
    assert "; second look, at level 0.04" in section.report.claims[0]
    assert len(read_looks(storage, "s", print)) == 2
    assert note in (tmp_path / "s.md").read_text()


def test_an_import_from_another_storage_takes_the_looks_along(tmp_path):
    """Imported twice: one look."""
    there, here = tmp_path / "there", tmp_path / "here"
    planned_of(there, 2)
    seen = a_look(1, seeds=2)
    note_look(Storage.open(there), "s", seen, print)
    for _ in range(2):
        import_storage(Storage.open(here), Storage.open(there), print)
    (look,) = read_looks(Storage.open(here), "s", print)
    assert (look.claims, look.planned) == (seen.claims, seen.planned)


@pytest.mark.usefixtures("wide")
def test_a_table_that_is_extended_after_its_look_stays_as_it_was_decided(tmp_path, capsys):
    note, claim = shown(planned_of(tmp_path, 2), capsys)
    assert note == "planned 2 seeds; looked at 2 seeds"
    assert "look" not in claim
    note, claim = shown(planned_of(tmp_path, 5), capsys)
    assert note.startswith("planned 2 seeds; looked at 2 and 5 seeds; only the 2 that were planned at the first look ")
    assert "are not distinguishable" in claim
    assert claim.endswith("; this p is of the 2 planned seeds)")


def test_fewer_planned_seeds_than_a_command_runs_are_refused(tmp_path):
    sweep = Sweep("s", tiny(6), (SIGMAS,), (0, 1, 2, 3, 4))
    options = Options(storage=str(tmp_path), executor="local")
    with pytest.raises(FieldError, match=r"planned_seeds = 3: must be 5 \(the seeds of this command\) to 1000"):
        run_sweep(sweep, options, comparison=Comparison(planned_seeds=3))
    assert not (tmp_path / "trainings").exists(), "nothing was started"
    with pytest.raises(FieldError, match="planned_seeds = 1: must be 2"):
        Comparison(planned_seeds=1)


def test_without_names_of_pairs_nothing_is_counted():
    claims = [claim._replace(pairs=None) for claim in claims_at(np.random.default_rng(0).normal(size=(2, 4)))]
    assert look_of(claims, 4).claims == ()
    assert plan_notes(claims, []) == []
    assert sentences(claims, [a_look(1)]) == sentences(claims)
