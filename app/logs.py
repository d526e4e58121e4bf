"""The service's log: one line an event, for people or as JSON. No picture, no file's name and no key is ever in it."""

import json
import logging
import logging.config
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

request_id: ContextVar[str] = ContextVar("request_id", default="-")

FIELDS = ("method", "path", "status", "milliseconds", "client")


class _WithId(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


class Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": getattr(record, "request_id", "-"),
        }
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True)


def configuration(log_format: str, level: str = "INFO") -> dict[str, Any]:
    """For uvicorn's `log_config`; its own line for every request is left out, since `app.envelope` writes one with the id."""
    text = {"format": "%(asctime)s %(levelname)-7s %(message)s [%(request_id)s]"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"id": {"()": _WithId}},
        "formatters": {"text": text, "json": {"()": Json}},
        "handlers": {"out": {"class": "logging.StreamHandler", "formatter": log_format, "filters": ["id"], "stream": "ext://sys.stderr"}},
        "loggers": {
            "clearfold": {"handlers": ["out"], "level": level, "propagate": False},
            "uvicorn": {"handlers": ["out"], "level": level, "propagate": False},
            "uvicorn.access": {"handlers": [], "level": "WARNING", "propagate": False},
        },
    }
