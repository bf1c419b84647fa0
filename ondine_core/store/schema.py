"""The tables of a store, as steps from each format to the next; an older store is migrated when it is opened.

Money is stored as whole pico-dollars (1e-12 USD) in 64 bits: the price of a token is a whole number of them, so sums
are exact, and one line of the ledger can hold nine million dollars.
"""

from __future__ import annotations

from ondine_core.errors import StoreError
from ondine_core.store.database import Database

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE ondine.answers (
            key BLOB PRIMARY KEY, "values" BLOB NOT NULL, model TEXT NOT NULL, attempts INTEGER NOT NULL,
            batch_size INTEGER NOT NULL, cost_usd TEXT, request_id TEXT, answered_at REAL NOT NULL
        )""",
        "CREATE TABLE ondine.numbers (name TEXT PRIMARY KEY, numbers BLOB NOT NULL)",
    ),
    (
        # Prompts that failed for good; a row is removed when its prompt is answered later.
        """CREATE TABLE ondine.failures (
            key BLOB PRIMARY KEY, reason TEXT NOT NULL, detail TEXT NOT NULL, failed_at REAL NOT NULL
        )""",
        # Calls that were sent and have no outcome, or none yet; `keys` are 16 bytes each, without a separator.
        """CREATE TABLE ondine.calls (
            call BLOB PRIMARY KEY, run TEXT NOT NULL, asset TEXT NOT NULL, partition TEXT NOT NULL, model TEXT NOT NULL,
            stage TEXT NOT NULL, keys BLOB NOT NULL, sent_at REAL NOT NULL, at_most_pico_usd INTEGER
        )""",
        # Sums of calls with an outcome; `day` is the date (UTC) on which they left.
        """CREATE TABLE ondine.ledger (
            run TEXT NOT NULL, asset TEXT NOT NULL, partition TEXT NOT NULL, model TEXT NOT NULL, stage TEXT NOT NULL,
            outcome TEXT NOT NULL, day TEXT NOT NULL, calls INTEGER NOT NULL, input_tokens INTEGER NOT NULL,
            cached_input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, reasoning_tokens INTEGER NOT NULL,
            cache_write_tokens INTEGER NOT NULL, pico_usd INTEGER NOT NULL, unpriced_calls INTEGER NOT NULL,
            paid_twice INTEGER NOT NULL,
            PRIMARY KEY (run, asset, partition, model, stage, outcome, day)
        )""",
    ),
    (
        # Unknown for older failures.
        "ALTER TABLE ondine.failures ADD COLUMN model TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE ondine.failures ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE ondine.failures ADD COLUMN cost_usd TEXT",
    ),
    (
        # Calls that are in `pico_usd` at their maximum cost; unknown for older calls.
        "ALTER TABLE ondine.ledger ADD COLUMN at_most_calls INTEGER NOT NULL DEFAULT 0",
    ),
    (
        # Announced runs, and which of their calls has a prompt in flight; see `claims`.
        """CREATE TABLE ondine.runs (
            run BLOB PRIMARY KEY, question BLOB NOT NULL, lease TEXT NOT NULL, process BLOB NOT NULL,
            joined_at REAL NOT NULL
        )""",
        "CREATE TABLE ondine.questions (question BLOB PRIMARY KEY, last_run BLOB NOT NULL UNIQUE)",
        "CREATE TABLE ondine.claims (key BLOB PRIMARY KEY, call BLOB NOT NULL, UNIQUE (call, key))",
    ),
    (
        # The origins of answers and failures; `origin` are the first bytes of the calls of a run. Unknown for older
        # answers and failures.
        """CREATE TABLE ondine.origins (
            origin BLOB PRIMARY KEY, run TEXT NOT NULL, asset TEXT NOT NULL, partition TEXT NOT NULL,
            question BLOB NOT NULL, began_at REAL NOT NULL
        )""",
        # Definitions of tasks, from which the key of a row can be computed.
        "CREATE TABLE ondine.definitions (question BLOB PRIMARY KEY, definition BLOB NOT NULL)",
        # Replies to prompts that failed, if a run keeps them.
        """CREATE TABLE ondine.replies (
            key BLOB PRIMARY KEY, reply TEXT NOT NULL, kept_at REAL NOT NULL, origin BLOB NOT NULL
        )""",
        "ALTER TABLE ondine.answers ADD COLUMN origin BLOB",
        "ALTER TABLE ondine.failures ADD COLUMN origin BLOB",
    ),
    (
        # Batch jobs of providers; the ids of their calls begin with `job`. `owner`, `cells` and `jobs` are JSON.
        """CREATE TABLE ondine.jobs (
            job BLOB PRIMARY KEY, question BLOB NOT NULL, run TEXT NOT NULL, asset TEXT NOT NULL,
            partition TEXT NOT NULL, model TEXT NOT NULL, account TEXT NOT NULL, owner BLOB NOT NULL,
            created_at REAL NOT NULL, answer_by REAL, cells BLOB NOT NULL, state TEXT NOT NULL,
            changed_at REAL NOT NULL, job_id TEXT, requests INTEGER NOT NULL, at_most_pico_usd INTEGER,
            status TEXT NOT NULL, done INTEGER NOT NULL
        )""",
        # Materializations that wait for jobs.
        """CREATE TABLE ondine.job_waits (
            asset TEXT NOT NULL, partition TEXT NOT NULL, first_run TEXT NOT NULL, last_run TEXT NOT NULL,
            jobs BLOB NOT NULL, since REAL NOT NULL, PRIMARY KEY (asset, partition)
        )""",
        # How the prompts of a request of a job were put together; null for other calls.
        "ALTER TABLE ondine.calls ADD COLUMN batch BLOB",
    ),
)
"""`MIGRATIONS[n]` migrates format `n` to format `n + 1`; format 0 is an empty database."""
NEWEST = len(MIGRATIONS)
"""The newest format that this version reads."""


# A prompt has both an answer and a failure if it failed when it was asked again, or if two processes asked it. The
# later of the two is valid.
IS_ANSWERED = "NOT EXISTS (SELECT 1 FROM ondine.failures AS f WHERE f.key = a.key AND f.failed_at > a.answered_at)"
"""Condition: the row `a` of answers is valid."""
IS_FAILED = "NOT EXISTS (SELECT 1 FROM ondine.answers AS a WHERE a.key = f.key AND a.answered_at >= f.failed_at)"
"""Condition: the row `f` of failures is valid."""


def migrate(database: Database, *, create: bool = True) -> None:
    """Migrate `database` to the newest format.

    Raises:
        StoreError: It is empty and `create` is not set, belongs to another program, or has a newer format.
    """
    if database.read(lambda: _check(database, create=create)) < NEWEST:
        # Checked again, since another process may have opened it in the meantime.
        database.write(lambda: _apply(database, _check(database, create=create)), ["format"])


def check_version(version: int, location: str) -> None:
    """Check that the format is not newer than `NEWEST`; another process may migrate tables while they are in use.

    Raises:
        StoreError: The format is newer.
    """
    if version > NEWEST:
        raise StoreError(
            f"The answer store {location!r} has format {version}, since a newer version of Ondine has migrated it, and "
            f"this one reads up to {NEWEST}; upgrade ondine-dagster wherever the store is used, or name another store. "
            "What was stored before is safe."
        )


def _check(database: Database, *, create: bool) -> int:
    version = database.read_format()
    if version is None:
        raise StoreError(f"{database.location!r} is a database of something else; name another store.")
    if version == 0 and not create:
        raise StoreError(f"There is no answer store at {database.location!r}; name one that exists.")
    check_version(version, database.location)
    return version


def _apply(database: Database, version: int) -> None:
    if version == 0:
        database.create_schema()
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            database.run(statement)
    database.write_format(NEWEST)
