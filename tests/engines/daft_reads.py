"""Read a Delta table with Daft, and say what is in it as JSON: `daft_reads.py URL [OPTIONS]`."""

import datetime
import json
import sys

import daft
from daft.io import IOConfig, S3Config


def main() -> None:
    url, options = sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else None
    config = None
    if options is not None:
        config = IOConfig(
            s3=S3Config(
                endpoint_url=options["AWS_ENDPOINT_URL"],
                key_id=options["AWS_ACCESS_KEY_ID"],
                access_key=options["AWS_SECRET_ACCESS_KEY"],
                region_name=options["AWS_REGION"],
                use_ssl=False,
                force_virtual_addressing=False,
            )
        )
    frame = daft.read_deltalake(url, io_config=config)
    rows = frame.to_pydict()
    day = datetime.datetime(2025, 1, 3, tzinfo=datetime.UTC)
    later = frame.where(daft.col("time") >= daft.lit(day)).count_rows()
    numbers = [n for n in rows["n"] if n is not None]
    cities = [p["city"] for p in rows["place"] if p is not None]
    print(json.dumps([len(rows["id"]), len(set(rows["id"])), sum(numbers), len(cities), later]))


if __name__ == "__main__":
    main()
