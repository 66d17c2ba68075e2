"""Checks pipeline files against the JSON Schema that `episteme schema` prints, with a validator that editors use.

Usage: check_schema.py FOLDER   (FOLDER/schema.json, FOLDER/good/*.toml, FOLDER/bad/*.toml)
Prints one JSON line: file name to the first complaint, or null.
"""
import json
import pathlib
import sys
import tomllib

import jsonschema

folder = pathlib.Path(sys.argv[1])
schema = json.loads((folder / "schema.json").read_text())
jsonschema.Draft202012Validator.check_schema(schema)
validator = jsonschema.Draft202012Validator(schema)
found = {}
for path in sorted(folder.glob("*/*.toml")):
    error = next(iter(validator.iter_errors(tomllib.loads(path.read_text()))), None)
    found[f"{path.parent.name}/{path.name}"] = error.message if error else None
print(json.dumps(found))
