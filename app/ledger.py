"""The tables: jobs, what was asked for and how it goes, every event of them, and the models. The one place with SQL; runs nothing.

Whatever changes a job does so in one transaction on its row, together with the event that tells of it and with the queue's entry for it, so
that a process may be killed between any two lines. SQLite and PostgreSQL are known; several processes may share either, and on PostgreSQL
several machines: the clock by which a worker is silent is the database's.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from app.errors import RETRY_SECONDS, JobsAway, ModelExists, ModelInUse, UnknownJob, UnknownModel
from app.orders import ENDED, Event, Job, Order, Status
from app.settings import Settings
from app.store import StoreError

SILENT_SECONDS = 10.0
"""A running job is shown as queued when its worker was not heard of for so long."""
AWAY = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError)
"""What is raised when the database does not answer."""
PATIENCE: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds
}
"""With PostgreSQL: a machine that is gone is found to be in seconds, not in the kernel's quarter of an hour."""


@dataclass
class Record:
    """A job's row. `beat`: when its worker was last heard of, seconds since 1970; `machine`: where that worker runs; `state`: the key under
    which the store keeps what it has learned; `clock`: the database's when the row was read.
    """

    job: Job
    order: Order
    beat: float = 0.0
    machine: str = ""
    crashes: int = 0
    crashed_at: int | None = None
    state: str | None = None
    clock: float = 0.0

    @property
    def ended(self) -> bool:
        return self.job.status in ENDED

    @property
    def silence(self) -> float:
        """Seconds since its worker was heard of."""
        return self.clock - self.beat

    def shown(self) -> Job:
        """As it is told to whoever asks: running only if a worker says so."""
        silent = self.job.status == "running" and self.silence > SILENT_SECONDS
        return self.job.model_copy(update={"status": "queued"}) if silent else self.job


_tables = sa.MetaData()
_jobs = sa.Table(
    "clearfold_jobs",
    _tables,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("status", sa.String(16), nullable=False, index=True),
    sa.Column("claim", sa.String(64), unique=True),  # the model's name, while the job may still make it
    sa.Column("job", sa.Text, nullable=False),
    sa.Column("order", sa.Text, nullable=False),
    sa.Column("beat", sa.Float, nullable=False),
    sa.Column("machine", sa.String(255), nullable=False),
    sa.Column("crashes", sa.Integer, nullable=False),
    sa.Column("crashed_at", sa.Integer),
    sa.Column("state", sa.String(32)),
)
_events = sa.Table(
    "clearfold_events",
    _tables,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("data", sa.Text, nullable=False),
)
_models = sa.Table(
    "clearfold_models",
    _tables,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(32), nullable=False),  # where its files are in the store; never used twice
    sa.Column("job", sa.String(32)),
)
_default = sa.Table(
    "clearfold_default",
    _tables,
    sa.Column("only", sa.Integer, primary_key=True),  # one row, which whoever removes or chooses a model locks
    sa.Column("model", sa.String(64)),
)


class Ledger:
    """The tables. Blocks while the database works: to be called in threads. Connects when it is first asked for something.

    Raises StoreError for an address that is none.
    """

    def __init__(self, url: str) -> None:
        self.url = _address(url)
        if self.on_disk and self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        postgres = self.url.drivername == "postgresql+psycopg"
        patience = {name: value for name, value in PATIENCE.items() if postgres and name not in self.url.query}
        pool = (
            {"pool_size": 2, "max_overflow": 6, "pool_timeout": 5} if postgres else {}
        )  # every process has some, and the database not many
        self._engine = sa.create_engine(self.url, pool_pre_ping=True, connect_args=patience, **pool)
        clock = "extract(epoch from clock_timestamp())" if postgres else "(julianday('now') - 2440587.5) * 86400.0"
        self._rows = sa.select(_jobs, sa.cast(sa.literal_column(clock), sa.Double).label("clock"))
        self._made, self._making = False, threading.Lock()
        if self.on_disk:
            sa.event.listen(self._engine, "connect", _set_up_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)

    @property
    def on_disk(self) -> bool:
        """Whether it is a file, on the disk where the jobs lie."""
        return self.url.get_backend_name() == "sqlite"

    @classmethod
    def of(cls, settings: Settings) -> "Ledger":
        return cls(settings.jobs_url or f"sqlite:///{file_of(settings)}")

    def close(self) -> None:
        self._engine.dispose()

    def _connect(self) -> sa.Connection:
        with self._making:
            if not self._made:
                try:
                    _make(self._engine)
                except sa.exc.DBAPIError:  # another process was creating them just now
                    _make(self._engine)
                self._made = True
        return self._engine.connect()

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with self._connect().execution_options(writes=True) as connection, connection.begin():
            yield connection

    def add(self, record: Record, enqueue: Callable[[sa.Connection, Record], None]) -> None:
        """A new job and its place in the queue. Raises ModelExists when another job is about to make that model."""
        try:
            with self._writing() as connection:
                connection.execute(_jobs.insert().values(id=record.job.id, **_row(record)))
                _tell(connection, record.job.id, "job", _plain(record.job))
                enqueue(connection, record)
        except sa.exc.IntegrityError:
            raise ModelExists(
                f"model = {record.order.model!r}: another training job is about to make it: choose another name.", model=record.order.model
            ) from None

    def __getitem__(self, id: str) -> Record:
        with self._connect() as connection:
            return _record(id, connection.execute(self._rows.where(_jobs.c.id == id)).mappings().first())

    def page(self, limit: int, before: str | None = None, status: Status | None = None) -> list[Record]:
        """The newest first, those before a given one."""
        query = self._rows.order_by(_jobs.c.number.desc()).limit(limit)
        if status is not None:
            query = query.where(_jobs.c.status == status)
        with self._connect() as connection:
            if before is not None:
                number = connection.execute(sa.select(_jobs.c.number).where(_jobs.c.id == before)).scalar()
                if number is None:
                    raise UnknownJob(f"before = {before!r}: there is no such training job.")
                query = query.where(_jobs.c.number < number)
            return [_record(row["id"], row) for row in connection.execute(query).mappings()]

    def active(self) -> list[Record]:
        """The jobs that have not ended, the oldest first."""
        with self._connect() as connection:
            query = self._rows.where(_jobs.c.status.notin_(ENDED)).order_by(_jobs.c.number)
            return [_record(row["id"], row) for row in connection.execute(query).mappings()]

    def ids(self) -> set[str]:
        with self._connect() as connection:
            return set(connection.execute(sa.select(_jobs.c.id)).scalars())

    def counts(self) -> dict[str, int]:
        """How many jobs have not ended, by their status."""
        query = sa.select(_jobs.c.status, sa.func.count()).where(_jobs.c.status.notin_(ENDED)).group_by(_jobs.c.status)
        with self._connect() as connection:
            return dict(connection.execute(query).all())

    def claimed(self, model: str) -> bool:
        """Whether a job that has not ended is about to make that model."""
        with self._connect() as connection:
            return connection.execute(sa.select(_jobs.c.id).where(_jobs.c.claim == model)).first() is not None

    def change(
        self,
        id: str,
        edit: Callable[[Record], bool],
        events: Sequence[tuple[str, dict[str, Any]]] = (),
        enqueue: Callable[[sa.Connection, Record], None] | None = None,
    ) -> Record:
        """Edits a job's row, nobody else being able to meanwhile. Nothing is written if `edit` says no.

        A new status is told as an event, after `events`. `enqueue` puts the job's attempt into the queue in the same transaction.
        """
        try:
            with self._writing() as connection:
                row = connection.execute(self._rows.where(_jobs.c.id == id).with_for_update()).mappings().first()
                record = _record(id, row)
                before = record.job.model_copy()
                if not edit(record):
                    return record
                connection.execute(_jobs.update().where(_jobs.c.id == id).values(**_row(record)))
                for kind, data in events:
                    _tell(connection, id, kind, data)
                if (before.status, before.attempt) != (record.job.status, record.job.attempt):
                    _tell(connection, id, "job", _plain(record.job))
                if enqueue is not None:
                    enqueue(connection, record)
                return record
        except sa.exc.IntegrityError:
            raise ModelExists(f"id = {id!r}: another training job is about to make the same model: cancel that first.") from None

    def remove(self, id: str) -> None:
        with self._writing() as connection:
            connection.execute(_events.delete().where(_events.c.id == id))
            connection.execute(_jobs.delete().where(_jobs.c.id == id))

    def events(self, id: str, after: int = 0, limit: int = 500) -> list[Event]:
        query = sa.select(_events).where(_events.c.id == id, _events.c.number > after).order_by(_events.c.number).limit(limit)
        with self._connect() as connection:
            rows = connection.execute(query).mappings().all()
        return [Event(number=row["number"], kind=row["kind"], data=json.loads(row["data"])) for row in rows]

    def last(self, id: str, kind: str) -> dict[str, Any] | None:
        """What the newest event of that kind told."""
        query = sa.select(_events.c.data).where(_events.c.id == id, _events.c.kind == kind).order_by(_events.c.number.desc()).limit(1)
        with self._connect() as connection:
            data = connection.execute(query).scalar()
        return None if data is None else dict(json.loads(data))

    # Models. Whether a model is the default is decided under the lock of the one row that says so.

    def models(self) -> tuple[dict[str, str], str | None]:
        """The key of each by its name, and the one that was chosen as the default."""
        with self._connect() as connection:
            keys = dict(connection.execute(sa.select(_models.c.name, _models.c.key).order_by(_models.c.name)).all())
            return keys, connection.execute(sa.select(_default.c.model)).scalar()

    def add_model(self, name: str, key: str, job: str | None) -> bool:
        """Whether it was added: not if that job has added it before. Raises ModelExists."""
        try:
            with self._writing() as connection:
                connection.execute(_models.insert().values(name=name, key=key, job=job))
                return True
        except sa.exc.IntegrityError:
            with self._connect() as connection:
                if job is not None and connection.execute(sa.select(_models.c.job).where(_models.c.name == name)).scalar() == job:
                    return False
            raise ModelExists(f"model = {name!r}: a model with this name is there, and none is overwritten: choose another name.") from None

    def remove_model(self, name: str) -> str:
        """The key of what it was. Raises UnknownModel or ModelInUse."""
        with self._writing() as connection:
            chosen = connection.execute(sa.select(_default.c.model).with_for_update()).scalar()
            key = connection.execute(sa.select(_models.c.key).where(_models.c.name == name)).scalar()
            if key is None:
                raise UnknownModel(f"model = {name!r}: there is no such model.")
            if name == chosen:
                raise ModelInUse(f"model = {name!r}: it is the default model: choose another default first.")
            connection.execute(_models.delete().where(_models.c.name == name))
            return str(key)

    def choose(self, name: str | None, shipped: bool = False) -> None:
        """Makes a model the default; None: none. Raises UnknownModel."""
        with self._writing() as connection:
            connection.execute(sa.select(_default).with_for_update())
            there = name is None or shipped or connection.execute(sa.select(_models.c.name).where(_models.c.name == name)).first()
            if not there:
                raise UnknownModel(f"model = {name!r}: there is no such model.")
            connection.execute(_default.update().values(model=name))


@contextmanager
def told_when_away() -> Iterator[None]:
    """A database that does not answer is a JobsAway."""
    try:
        yield
    except AWAY:
        raise JobsAway(JobsAway.example, headers={"Retry-After": str(RETRY_SECONDS)}) from None


def file_of(settings: Settings) -> Path:
    """Where the table is unless the settings name a database."""
    return (settings.train_dir / "jobs.sqlite").absolute()


def _address(text: str) -> sa.URL:
    """With the driver that is there. Raises StoreError in words of ours: those of its readers may hold the password."""
    try:
        url = sa.make_url(text)
        if url.drivername in ("postgresql", "postgres"):
            url = url.set(drivername="postgresql+psycopg")
        dialect = url.get_dialect()
        dialect.import_dbapi()
        arguments, options = dialect().create_connect_args(url)
        if url.drivername == "postgresql+psycopg":
            _make_sure(arguments, options)
    except (ImportError, sa.exc.NoSuchModuleError):
        raise StoreError(f"jobs_url = {text.partition(':')[0]}://… is no database that is known here: set postgresql://…") from None
    except (ValueError, sa.exc.ArgumentError):
        raise StoreError(
            "jobs_url cannot be read: it must be postgresql://USER:PASSWORD@HOST:PORT/NAME, PORT a number, behind it options of libpq's"
        ) from None
    return url


def _make_sure(arguments: Sequence[Any], options: Mapping[str, Any]) -> None:
    """That the driver can read them. Raises ValueError."""
    import psycopg  # not where no job was ever ordered

    try:
        psycopg.conninfo.make_conninfo(*arguments, **options)
    except psycopg.ProgrammingError as unknown:
        raise ValueError from unknown


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _make(engine: sa.Engine) -> None:
    """The tables as this release has them; jobs of an earlier one had no `state`."""
    _tables.create_all(engine)
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        if "state" not in {column["name"] for column in sa.inspect(connection).get_columns(_jobs.name)}:
            connection.execute(sa.text(f"ALTER TABLE {_jobs.name} ADD COLUMN state VARCHAR(32)"))
        if connection.execute(sa.select(_default.c.only)).first() is None:
            connection.execute(_default.insert().values(only=1))


def _plain(job: Job) -> dict[str, Any]:
    return job.model_dump(mode="json")


def _row(record: Record) -> dict[str, Any]:
    return {
        "status": record.job.status,
        "claim": None if record.ended else record.order.model,
        "job": record.job.model_dump_json(),
        "order": record.order.model_dump_json(),
        "beat": record.beat,
        "machine": record.machine,
        "crashes": record.crashes,
        "crashed_at": record.crashed_at,
        "state": record.state,
    }


def _record(id: str, row: sa.RowMapping | None) -> Record:
    if row is None:
        raise UnknownJob(f"id = {id!r}: there is no such training job.")
    job, order = Job.model_validate_json(row["job"]), Order.model_validate_json(row["order"])
    return Record(job, order, row["beat"], row["machine"], row["crashes"], row["crashed_at"], row["state"], row["clock"])


def _tell(connection: sa.Connection, id: str, kind: str, data: dict[str, Any]) -> None:
    last = connection.execute(sa.select(sa.func.max(_events.c.number)).where(_events.c.id == id)).scalar()
    connection.execute(_events.insert().values(id=id, number=(last or 0) + 1, kind=kind, data=json.dumps(data)))


def _set_up_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # the driver begins no transaction of its own: `_begin_sqlite` does
    connection.execute("PRAGMA journal_mode=WAL")  # whoever reads never waits
    connection.execute("PRAGMA busy_timeout=30000")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads before it writes takes the lock at once: two of them would otherwise both read the old row.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")
