"""The compiled core of `CloudMemory`: dense point arrays, a hash table of their voxels, and lists in order of use.

Points are dense: a removed one is replaced by the last. The table is open-addressed with linear probing; the eight
voxels of a 2x2x2 block share one cache line, so neighbouring pixels find each other's entries warm. Removal shifts
entries back, so no tombstones pile up and no rehash is ever needed. Two doubly linked lists (imagined, observed) keep
the points in the order in which they were last seen: the one to evict is always at a head.
"""

from __future__ import annotations

import numpy as np

from worldstereo_ros.utils.jit import compiled

NONE = np.int32(-1)
# Places in the int64 state vector. List 0 holds imagined points, list 1 observed ones.
SIZE, HEAD, TAIL, LENGTH, HAND, TURN = 0, 1, 3, 5, 7, 8
STATE_NUMBERS = 9
# Places in the int64 counts of one fusion.
ADDED, MERGED, PROMOTED, REJECTED, EVICTED, DROPPED = 0, 1, 2, 3, 4, 5

_BLOCK = np.uint64(0x7FFFFFFFFFFFFFFF) ^ np.uint64(1 | 1 << 21 | 1 << 42)
_ODD = np.uint64(0x9E3779B97F4A7C15)
_ODD2 = np.uint64(0xBF58476D1CE4E5B9)


@compiled
def _home(key, mask):
    """The first slot to try: the block's place by hash, the voxel's within it by its three lowest bits."""
    h = np.uint64(key) & _BLOCK
    h = h * _ODD
    h ^= h >> np.uint64(32)
    h = h * _ODD2
    h ^= h >> np.uint64(29)
    local = (key & 1) | ((key >> 20) & 2) | ((key >> 40) & 4)
    return np.int64(((h << np.uint64(3)) & np.uint64(mask)) | np.uint64(local))


@compiled
def find(table_keys, key):
    """The slot that holds `key`, or the empty one where it would go. Stored keys are key + 1; 0 is empty."""
    mask = len(table_keys) - 1
    slot = _home(key, mask)
    while table_keys[slot] != 0 and table_keys[slot] != key + 1:
        slot = (slot + 1) & mask
    return slot


@compiled
def _erase(table_keys, table_points, slot):
    """Empties a slot and shifts the entries behind it back, so that every probe still finds its key."""
    mask = len(table_keys) - 1
    at = slot
    while True:
        at = (at + 1) & mask
        stored = table_keys[at]
        if stored == 0:
            break
        if ((at - _home(stored - 1, mask)) & mask) >= ((at - slot) & mask):
            table_keys[slot] = stored
            table_points[slot] = table_points[at]
            slot = at
    table_keys[slot] = 0


@compiled
def _unlink(state, previous, following, kind, i):
    before = previous[i]
    after = following[i]
    if before == NONE:
        state[HEAD + kind] = after
    else:
        following[before] = after
    if after == NONE:
        state[TAIL + kind] = before
    else:
        previous[after] = before
    state[LENGTH + kind] -= 1


@compiled
def _append(state, previous, following, kind, i):
    tail = state[TAIL + kind]
    previous[i] = tail
    following[i] = NONE
    if tail == NONE:
        state[HEAD + kind] = i
    else:
        following[tail] = i
    state[TAIL + kind] = i
    state[LENGTH + kind] += 1


@compiled
def remove(arrays, table_keys, table_points, state, i):
    """Removes point i; the last point takes its place."""
    points, colours, fine, observed, weight, stamps, spacing, keys, turns, confidence, previous, following = arrays
    _erase(table_keys, table_points, find(table_keys, keys[i]))
    _unlink(state, previous, following, int(observed[i]), i)
    last = state[SIZE] - 1
    state[SIZE] = last
    if i == last:
        return
    kind = int(observed[last])
    table_points[find(table_keys, keys[last])] = i
    before = previous[last]
    after = following[last]
    if before == NONE:
        state[HEAD + kind] = i
    else:
        following[before] = i
    if after == NONE:
        state[TAIL + kind] = i
    else:
        previous[after] = i
    previous[i] = before
    following[i] = after
    for k in range(3):
        points[i, k] = points[last, k]
        colours[i, k] = colours[last, k]
        fine[i, k] = fine[last, k]
    observed[i] = observed[last]
    weight[i] = weight[last]
    stamps[i] = stamps[last]
    spacing[i] = spacing[last]
    keys[i] = keys[last]
    turns[i] = turns[last]
    confidence[i] = confidence[last]


@compiled
def _room(arrays, table_keys, table_points, state, new_is_observed, counts):
    """A free place for a new point, by eviction where the memory is full; -1 where the new one must give way.

    The longest unseen imagined point goes first, then the longest unseen observed one. An imagined point never
    evicts an observed one, and a point of this very turn is never evicted for one of its own kind.
    """
    _, _, _, observed, _, _, _, keys, turns, _, previous, following = arrays
    if state[SIZE] < len(keys):
        state[SIZE] += 1
        return state[SIZE] - 1
    if state[LENGTH] > 0:
        victim = state[HEAD]
        if not new_is_observed and turns[victim] == state[TURN]:
            return np.int64(-1)
    elif new_is_observed:
        victim = state[HEAD + 1]
        if turns[victim] == state[TURN]:
            return np.int64(-1)
    else:
        return np.int64(-1)
    _erase(table_keys, table_points, find(table_keys, keys[victim]))
    _unlink(state, previous, following, int(observed[victim]), victim)
    counts[EVICTED] += 1
    return victim


@compiled
def fuse(arrays, table_keys, table_points, state, new_points, new_colours, new_observed, new_keys, new_weight,
         new_spacing, new_stamps, new_confidence, cap, least_spacing, counts):  # fmt: skip
    """Merges new points into the cloud, voxel by voxel.

    Same provenance: running mean of position, colour and confidence, by weight. Observed over imagined:
    replaced. Imagined over observed: ignored. A key below 0 is skipped. `new_stamps` and `new_confidence` have one
    number for all or one per point.
    """
    points, colours, fine, observed, weight, stamps, spacing, keys, turns, confidence, previous, following = arrays
    state[TURN] += 1
    turn = state[TURN]
    one_stamp = len(new_stamps) == 1
    one_confidence = len(new_confidence) == 1
    last_key = np.int64(-1)
    i = np.int64(-1)
    for n in range(len(new_keys)):
        key = new_keys[n]
        if key < 0:
            continue
        seen = new_observed[n]
        gain = min(new_weight[n], cap)
        stamp = new_stamps[0] if one_stamp else new_stamps[n]
        new_level = new_confidence[0] if one_confidence else new_confidence[n]
        gap = max(new_spacing[n], least_spacing)
        if key != last_key:
            slot = find(table_keys, key)
            i = np.int64(table_points[slot]) if table_keys[slot] != 0 else np.int64(-1)
            last_key = key
        fresh = False
        if i < 0:
            i = _room(arrays, table_keys, table_points, state, seen, counts)
            if i < 0:
                counts[DROPPED] += 1
                last_key = np.int64(-1)
                continue
            slot = find(table_keys, key)  # again: an eviction may have shifted entries
            table_keys[slot] = key + 1
            table_points[slot] = i
            keys[i] = key
            _append(state, previous, following, int(seen), i)
            counts[ADDED] += 1
            fresh = True
        elif observed[i] and not seen:
            counts[REJECTED] += 1
            continue
        elif seen and not observed[i]:
            _unlink(state, previous, following, 0, i)
            _append(state, previous, following, 1, i)
            counts[PROMOTED] += 1
            fresh = True
        if fresh:
            for k in range(3):
                points[i, k] = new_points[n, k]
                colours[i, k] = new_colours[n, k]
                fine[i, k] = np.uint16(new_colours[n, k]) << np.uint16(8)
            observed[i] = seen
            weight[i] = gain
            stamps[i] = stamp
            spacing[i] = gap
            turns[i] = turn
            confidence[i] = new_level
            continue
        counts[MERGED] += 1
        total = weight[i] + gain
        share = gain / total
        weight[i] = min(total, cap)
        for k in range(3):
            points[i, k] += share * (new_points[n, k] - points[i, k])
            old = np.float32(fine[i, k])
            mixed = old + share * (np.float32(np.int32(new_colours[n, k]) << np.int32(8)) - old)
            whole = np.int32(mixed + np.float32(0.5))
            fine[i, k] = whole
            colours[i, k] = min((whole + 128) >> 8, 255)
        level = np.float32(confidence[i])
        confidence[i] = np.uint16(level + share * (np.float32(new_level) - level) + np.float32(0.5))
        stamps[i] = max(stamps[i], stamp)
        spacing[i] = min(spacing[i], gap)
        if turns[i] != turn:
            turns[i] = turn
            _unlink(state, previous, following, int(seen), i)
            _append(state, previous, following, int(seen), i)


@compiled
def sweep(arrays, table_keys, table_points, state, quota, centre, radius, oldest, depth, frame, margin, counts):
    """Looks at the next `quota` points, round and round, and removes what must go.

    counts[0]: farther from `centre` than `radius`, or seen before the stamp `oldest`. counts[1]: imagined, and the
    depth image (0 = unknown) looks through it at something behind. `frame`: rotation camera_from_world by rows, fx,
    fy, cx, cy; `margin`: metres that a surface may be behind a point before it disproves it, beside 5 % of its depth.
    """
    points, _, _, observed, _, stamps, _, _, _, _, _, _ = arrays
    height, width = depth.shape
    far = radius * radius
    left = quota
    all_of_them = state[SIZE] <= quota
    i = np.int64(0) if all_of_them else state[HAND]
    while left > 0 and state[SIZE] > 0:
        left -= 1
        if i >= state[SIZE]:
            if all_of_them:
                break
            i = np.int64(0)
        x = np.float64(points[i, 0]) - centre[0]
        y = np.float64(points[i, 1]) - centre[1]
        z = np.float64(points[i, 2]) - centre[2]
        if x * x + y * y + z * z > far or stamps[i] < oldest:
            remove(arrays, table_keys, table_points, state, i)
            counts[0] += 1
            continue
        if not observed[i] and height > 0:
            ahead = frame[6] * x + frame[7] * y + frame[8] * z
            if ahead > 0:
                u = frame[9] * (frame[0] * x + frame[1] * y + frame[2] * z) / ahead + frame[11]
                v = frame[10] * (frame[3] * x + frame[4] * y + frame[5] * z) / ahead + frame[12]
                if u >= 0.5 and u < width - 1.5 and v >= 0.5 and v < height - 1.5:
                    column = np.int64(u + 0.5)
                    row = np.int64(v + 0.5)
                    behind = True
                    for yy in range(row - 1, row + 2):
                        for xx in range(column - 1, column + 2):
                            behind = behind and np.float64(depth[yy, xx]) * 0.95 - margin > ahead
                    if behind:
                        remove(arrays, table_keys, table_points, state, i)
                        counts[1] += 1
                        continue
        i += 1
    state[HAND] = i


@compiled
def rebuild(table_keys, table_points, state, keys, observed, previous, following, order):
    """Fills an empty table and the lists from dense arrays, least recently seen first; False if a voxel is double."""
    for i in range(len(order)):
        slot = find(table_keys, keys[i])
        if table_keys[slot] != 0:
            return False
        table_keys[slot] = keys[i] + 1
        table_points[slot] = i
    for n in range(len(order)):
        i = order[n]
        _append(state, previous, following, int(observed[i]), i)
    state[SIZE] = len(order)
    return True
