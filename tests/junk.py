"""Records spoilt at one place, one after the other."""

import copy


def paths(value, so_far=()):
    yield so_far
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*so_far, key))


def with_junk(record, path, junk):
    if not path:
        return junk
    changed = copy.deepcopy(record)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = junk
    return changed
