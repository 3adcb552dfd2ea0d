"""What cannot be relied on in a run that can be read: changed records, other code, another checks file."""

from dbpkit.results.run_directory import RunDirectory


def doubts(run: RunDirectory) -> list[tuple[str, str]]:
    """Returns what cannot be relied on in a run: severity and a sentence each."""
    found = []
    if not run.is_verified():
        said = "The records carry no digest, as an older dbpkit wrote them: a change would not be noticed."
        found.append(("warning", said))
    if not run.sessions() and run.columns().rows:
        said = "env.json is missing: the weights and data of the records are unknown."
        found.append(("error", said))
    codes = {(s.get("versions", {}).get("dbpkit"), s.get("code_sha256")) for s in run.sessions()}
    if len(codes) > 1:
        said = f"The run was continued with other code of dbpkit ({len(codes)} versions): see env.json."
        found.append(("warning", said))
    checks = run.made_with()["checks"]
    if any(seal.get("checks", checks) != checks for seal in run.columns().seals[-1:]):
        said = "checks.json is not the one the records were made with, so flags may be missing."
        found.append(("error", said))
    return found
