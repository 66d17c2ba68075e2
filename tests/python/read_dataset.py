"""Reads a dataset or predictions file with every reader that users have, and prints what each found as one JSON line.

Usage: read_dataset.py FILE.parquet
"""
import json
import sys

import duckdb
import polars
import pyarrow.parquet as pq

path = sys.argv[1]
table = pq.read_table(path)
duck = duckdb.sql(f"SELECT * FROM read_parquet('{path}')")
frame = polars.read_parquet(path)

found = {
    "metadata": {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items() if key.startswith(b"episteme")},
    "pyarrow": {"rows": table.num_rows, "columns": table.column_names, "types": [str(field.type) for field in table.schema]},
    "duckdb": {"rows": duck.count("*").fetchall()[0][0], "columns": duck.columns},
    "polars": {"rows": frame.height, "columns": frame.columns},
}
if "image" in table.column_names:
    # The same pixels whoever reads them.
    sums = [sum(map(sum, table["image"].to_pylist())), sum(map(sum, frame["image"].to_list())), sum(sum(row[0]) for row in duck.select("image").fetchall())]
    found["pixel_sums"] = sums
print(json.dumps(found))
