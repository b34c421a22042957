"""How log lines look: one per record, for people or for machines."""

import json
import logging
import sys


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One JSON object per record: time (seconds), level, logger, message and, if any, the trace."""
        line = {
            "time": round(record.created, 3),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logging(level: str, line_format: str) -> None:
    """Send every record of `level` and above to standard error, as `text` or `json`."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(_JsonLines() if line_format == "json" else text)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # What is wrong with a form is told to whoever has sent it; here it would fill the disk.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    # Each header that is not UTF-8 would be a stack trace here; our methods log their own failures.
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)
    # uvicorn tells of its own start and end, which this service does itself
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLevelName(level)))
