"""Files of the formats that events come in, as chunks of rows by the table's column names."""

from lakestore.files import arrow, csv, ndjson

READERS = {
    "csv": csv.chunks,
    "ndjson": ndjson.chunks,
    "parquet": arrow.chunks,
    "arrow": arrow.chunks,
}
"""What reads each format."""
