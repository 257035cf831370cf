"""Studies that stay: an Optuna study per search, in the storage, from which suggestions are drawn so that a search that
was killed goes on as if it had not been.

The study is `studies/NAME.journal` below the storage, which optuna-dashboard opens, or a database (`--study URI`). A
suggestion is made in a copy of the study in memory, by a sampler that is seeded by the search's seed, the number of
trials there are, and the attempt; then the whole trial is added to the study as a running one. So nothing of a
sampler's state has to survive, and there is never half a trial.
"""

from __future__ import annotations

import json
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock, JournalStorage
from optuna.study import StudyDirection
from optuna.trial import BaseTrial, FixedTrial, FrozenTrial, TrialState, create_trial

from pforce.base.errors import ConfigError, InputError
from pforce.base.files import check_replaceable, read_whole, write_bytes
from pforce.base.foreign import quoted
from pforce.orchestration.objectives import Objective, Requirement
from pforce.records.lease import Lease, leased
from pforce.storage import Storage, StorageError
from pforce.tracking import mask

STUDIES = "studies"
"""Folder of studies below a storage's root."""
Method = Literal["grid", "random", "tpe", "nsga2", "gp"]
METHODS: tuple[Method, ...] = get_args(Method)
GOAL = "pforce"
"""Attribute of a study with its space, objectives and requirements."""
SEED = "pforce.seed"
MARK = "pforce.mark"
"""Attribute by which the process that has added a trial finds it again."""
SAME = "pforce.same_as"
"""Attribute of a trial whose cells are another trial's: the number of that one. It does not count."""
ORIGIN = "pforce.from"
"""Attribute of trials that were not suggested by the search but told from records."""
CONSTRAINTS = "constraints"
"""Attribute in which Optuna keeps how far a trial is beyond each requirement."""
STARTUP = 10
"""Random trials before a model suggests."""
ATTEMPTS = 20
"""Suggestions of a point that is there already after which random ones are tried."""
RANDOM_ATTEMPTS = 200
"""Random points that are there already after which the space counts as exhausted."""
LOCK_SECONDS = 10
"""Seconds after which the lock of a journal that nobody writes counts as left behind by a dead process."""
BROKEN = (ValueError, KeyError, TypeError, AttributeError, AssertionError, OSError)
"""Errors of Optuna about a damaged journal."""


def _sampler(method: Method, seed: int, trials: int, constrained: bool) -> BaseSampler:
    """Optuna's sampler of a method."""
    known = _known_constraints if constrained else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # options that Optuna calls experimental
        if method == "tpe":
            return optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=STARTUP, multivariate=True, group=True, constant_liar=True,
                constraints_func=known,
            )  # fmt: skip
        if method == "nsga2":  # of a default of 50 a short search would see one generation
            population = max(4, min(50, trials // 4))
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=population, constraints_func=known)
        if method == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP, constraints_func=known)
        return optuna.samplers.RandomSampler(seed=seed)


def _known_constraints(trial: FrozenTrial) -> Sequence[float]:
    return list(trial.system_attrs.get(CONSTRAINTS, ()))


def goal_of(
    space: Points, objectives: Sequence[Objective], requirements: Sequence[Requirement]
) -> dict[str, Any]:  # fmt: skip
    """Space, objectives and requirements of a search as plain data."""
    return {
        "space": space.plain, "objectives": [str(each) for each in objectives],
        "requirements": sorted(str(each) for each in requirements),
    }  # fmt: skip


class Points(Protocol):
    """A space of points: of a sweep's axes, or of samplers."""

    @property
    def plain(self) -> Any:
        """The space as plain data."""

    @property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        """Name of each parameter → its distribution."""

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Draw a point by a trial's `suggest_…`."""

    def rounded(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters with numbers as they are used."""


class Study:
    """A persistent study of a search. ConfigError where it is damaged, locked, or of another search.

    Args:
        name: name of the sweep, which is the study's, too.
        study: name of the study, where the sweep has several.
        uri: database of the study; None for a journal in the storage.
        trials: number of trials that the search is to have.
    """

    def __init__(
        self, storage: Storage, name: str, uri: str | None, *, study: str = "", space: Points,
        objectives: Sequence[Objective], requirements: Sequence[Requirement] = (), method: Method, seed: int = 0,
        trials: int, grid: Sequence[Mapping[str, Any]] = (),
    ) -> None:  # fmt: skip
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.space, self.method, self.seed, self.wanted, self.grid = space, method, seed, trials, list(grid)
        self.constrained = bool(requirements)
        self.directions = [StudyDirection[each.direction] for each in objectives]
        self.artifacts = storage.root / STUDIES / f"{name}.artifacts"
        """Folder of the trials' pictures."""
        self.where = mask(uri) if uri else str(journal_of(storage, name))
        self.key, self.place = f"study/{name}", storage
        with _told(self.where), self.alone():  # two processes may be the first at once
            self.storage = _open(storage, name, uri)
            self.study = self._open(study or name, goal_of(space, objectives, requirements))

    def _open(self, name: str, goal: Mapping[str, Any]) -> optuna.Study:
        if name not in optuna.get_all_study_names(self.storage):
            optuna.create_study(storage=self.storage, study_name=name, directions=self.directions)
        study = optuna.load_study(study_name=name, storage=self.storage)
        same = study.directions == self.directions
        if GOAL not in study.user_attrs and not study.get_trials(deepcopy=False) and same:  # new, or half made
            study.set_metric_names([text.partition(":")[2] for text in goal["objectives"]])
            study.set_user_attr(GOAL, json.dumps(goal))
        try:
            there = json.loads(study.user_attrs[GOAL])
        except (KeyError, TypeError, ValueError):
            if not same:
                raise ConfigError(self._other(name, ["it has other directions"])) from None
            raise ConfigError(self._other(name, ["it is none of pforce's"])) from None
        told = [
            f"its {part} are {_plainly(there.get(part))}, and this command's {_plainly(goal[part])}"
            for part in goal if there.get(part) != goal[part]
        ]  # fmt: skip
        if told:
            raise ConfigError(self._other(name, told))
        return study

    def _other(self, name: str, told: Sequence[str]) -> str:
        return f"{self.where}: holds a study {name} of another search: {'; '.join(told)}. Give another --name"

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        with _told(self.where):
            return self.study.get_trials(deepcopy=False)

    def alone(self) -> AbstractContextManager[Lease]:
        """Hold the study's lease during a block, so that two processes do not suggest the same."""
        return leased(self.place, self.key, "asking the study of a search")

    @property
    def usable(self) -> list[FrozenTrial]:
        """The trials that are points of the space; people may have added others, or put some into a queue."""
        return [trial for trial in self.trials if self._is_usable(trial)]

    def _is_usable(self, trial: FrozenTrial) -> bool:
        fits = all(self.space.distributions.get(name) == each for name, each in trial.distributions.items())
        return fits and trial.state != TrialState.WAITING and self.values(trial) is not None

    @property
    def own(self) -> list[FrozenTrial]:
        """The trials that the search itself has suggested."""
        return [trial for trial in self.usable if not {ORIGIN, SAME} & trial.user_attrs.keys()]

    def values(self, trial: FrozenTrial) -> dict[str, Any] | None:
        """Path → value of a trial; None for one that somebody else has added with other parameters."""
        return self.values_of(trial.params)

    def values_of(self, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """Path → value for parameters; None where they are none of the space."""
        try:
            return self.space.suggest(FixedTrial(dict(params)))
        except (ValueError, KeyError):
            return None

    def ask(self) -> FrozenTrial | None:
        """Suggest a point that is not there yet, and add it as a running trial. None where the space is exhausted."""
        there = self.usable
        points = {_point(trial.params) for trial in there}
        if self.method == "grid":
            left = (each for each in self.grid if _point(each) not in points)
            params = next(left, None)
            return None if params is None else self._add(params, {})
        for attempt in range(ATTEMPTS + RANDOM_ATTEMPTS):
            method: Method = self.method if attempt < ATTEMPTS else "random"
            params, attributes = self._suggest(there, method, attempt)
            if _point(params) not in points:
                return self._add(params, attributes)
        return None

    def _suggest(
        self, there: Sequence[FrozenTrial], method: Method, attempt: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters of a suggestion, and what the sampler notes about it."""
        seed = (1_000_003 * self.seed + 1_009 * len(there) + attempt) % 2**32
        sampler = _sampler(method, seed, self.wanted, self.constrained)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            copy = optuna.create_study(directions=self.directions, sampler=sampler)
            for trial in there:
                copy.add_trial(_stopped(trial) if trial.intermediate_values else trial)
            asked = copy.ask()
            self.space.suggest(asked)
        noted = copy.trials[-1].system_attrs
        return self.space.rounded(asked.params), dict(noted)

    def _distributions(self, params: Mapping[str, Any]) -> dict[str, BaseDistribution]:
        return {name: each for name, each in self.space.distributions.items() if name in params}

    def begin(self, params: Mapping[str, Any]) -> FrozenTrial:
        """Add a running trial of given parameters."""
        return self._add(self.space.rounded(params), {})

    def _add(self, params: Mapping[str, Any], attributes: Mapping[str, Any]) -> FrozenTrial:
        mark = uuid.uuid4().hex
        trial = create_trial(
            state=TrialState.RUNNING, params=dict(params), distributions=self._distributions(params),
            system_attrs=dict(attributes), user_attrs={SEED: self.seed, MARK: mark},
        )  # fmt: skip
        with _told(self.where):
            self.study.add_trial(trial)
        return next(trial for trial in reversed(self.trials) if trial.user_attrs.get(MARK) == mark)

    def possible(self, params: Mapping[str, Any]) -> bool:
        """Whether parameters lie in the space."""
        try:
            create_trial(state=TrialState.RUNNING, params=dict(params), distributions=self._distributions(params))
        except ValueError:
            return False
        return True

    def add(
        self, params: Mapping[str, Any], values: Sequence[float], violations: Sequence[float], origin: str
    ) -> None:  # fmt: skip
        """Tell the study a point that the records hold already."""
        noted = {CONSTRAINTS: tuple(violations)} if self.constrained else {}
        told = create_trial(
            params=dict(params), distributions=self._distributions(params), values=list(values),
            system_attrs=noted, user_attrs={ORIGIN: origin},
        )  # fmt: skip
        with _told(self.where):
            self.study.add_trial(told)

    def tell(self, number: int, values: Sequence[float] | None, violations: Sequence[float] = ()) -> None:
        """Tell the values of a running trial; None where it has none, as it diverged. Does nothing where another driver
        has told it."""
        with _told(self.where), suppress(UpdateFinishedTrialError):
            if values is None:
                self.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
                return
            if self.constrained:
                self.storage.set_trial_system_attr(self.trials[number]._trial_id, CONSTRAINTS, tuple(violations))
            self.study.tell(number, list(values), skip_if_finished=True)

    def report(self, number: int, step: int, value: float) -> None:
        """Tell the value of a running trial at a step, in images seen, unless that is there."""
        trial = self.trials[number]
        if step not in trial.intermediate_values and not trial.state.is_finished():
            with _told(self.where), suppress(UpdateFinishedTrialError):
                self.storage.set_trial_intermediate_value(trial._trial_id, step, value)

    def stop(self, number: int) -> None:
        """Tell that a running trial was stopped early."""
        with _told(self.where), suppress(UpdateFinishedTrialError):
            self.study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)

    def attach(self, number: int, path: Path) -> None:
        """Keep a picture as an artifact of a trial, beside the journal."""
        self.artifacts.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            store = optuna.artifacts.FileSystemArtifactStore(self.artifacts)
            optuna.artifacts.upload_artifact(
                artifact_store=store, file_path=str(path), study_or_trial=self.trials[number], storage=self.storage
            )

    def note(self, number: int, name: str, value: Any) -> None:
        """Note something about a trial that is not finished yet, for people who look at the study."""
        with _told(self.where), suppress(UpdateFinishedTrialError):
            self.storage.set_trial_user_attr(self.trials[number]._trial_id, name, value)


def _stopped(trial: FrozenTrial) -> FrozenTrial:
    """A running trial that has values at rungs as one that was stopped there, so that a sampler learns from it."""
    if trial.state.is_finished():
        return trial
    return create_trial(
        state=TrialState.PRUNED, params=trial.params, distributions=trial.distributions,
        intermediate_values=trial.intermediate_values, system_attrs=trial.system_attrs, user_attrs=trial.user_attrs,
    )  # fmt: skip


def _point(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)


def _plainly(value: object) -> str:
    return quoted(json.dumps(value))


def journal_of(storage: Storage, name: str) -> Path:
    """The journal of a study."""
    return storage.root / STUDIES / f"{name}.journal"


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Turn errors of Optuna about its storage into ConfigError."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (InputError, StorageError):  # they say it themselves
        raise
    except RuntimeError as error:  # of the journal's lock
        raise ConfigError(f"{where}: cannot be used ({quoted(str(error))}); where no other process uses it, remove "
                          f"{where}.lock") from error  # fmt: skip
    except (*BROKEN, SQLAlchemyError, ImportError, optuna.exceptions.OptunaError) as error:
        cause = error.__cause__ or error  # Optuna's own text only says that a commit failed
        told = quoted(mask(" ".join(str(cause).split()) or type(cause).__name__))
        raise ConfigError(
            f"{where}: the study cannot be read or written ({told}); its trials' results are in the storage, so "
            "another --name or --study finds them"
        ) from error


def _open(storage: Storage, name: str, uri: str | None) -> BaseStorage:
    """The storage of a study. ConfigError for a journal in a bucket."""
    if uri is not None:
        if "://" not in uri:
            raise ConfigError(f"--study {mask(uri)}: is the address of a database, such as sqlite:////FOLDER/study.db")
        return RDBStorage(uri)
    if storage.remote:
        raise ConfigError(f"--study: must be given with --storage {storage}, as a bucket cannot hold a journal: the "
                          "address of a database, such as postgresql://HOST/NAME")  # fmt: skip
    path = journal_of(storage, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        raise ConfigError(f"{path}: is a link, which is not followed; remove it")
    check_replaceable(path)
    lock = JournalFileSymlinkLock(str(path), grace_period=LOCK_SECONDS)
    _mend(path, lock)
    return JournalStorage(JournalFileBackend(str(path), lock))


def _mend(path: Path, lock: JournalFileSymlinkLock) -> None:
    """Cut off half a last line, which a process that was killed as it wrote has left."""
    if not path.exists() or read_whole(path)[-1:] in (b"", b"\n"):
        return
    lock.acquire()
    try:
        content = read_whole(path)
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            write_bytes(path, whole)
    finally:
        lock.release()
