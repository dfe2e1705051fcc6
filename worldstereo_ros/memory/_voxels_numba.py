"""Compiled core of `CloudMemory`: dense point arrays, a voxel hash table, and least-recently-used lists.

The arrays are dense: the last point replaces a removed one. The table is open-addressed with linear probing; the eight
voxels of a 2x2x2 block share one cache line, so that lookups of neighbouring pixels hit the cache. Removal shifts
entries back, so that there are no tombstones and no rehashing. Three doubly linked lists (imagined, estimated,
observed) order the points by the time of their last update; the point to evict is at the head of a list.
"""

from __future__ import annotations

import numpy as np

from worldstereo_ros.utils.jit import compiled

NONE = np.int32(-1)
# Values of `geometry.provenance.Provenance`, as numba needs them.
IMAGINED, ESTIMATED, OBSERVED = 1, 2, 3
# Indices into the int64 state vector. The list of class k is k - 1: HEAD + 2 is the head of the list of observed
# points. SWEEP_AT is the point at which the next sweep starts, TURN the number of insertions so far.
SIZE, HEAD, TAIL, LENGTH, SWEEP_AT, TURN = 0, 1, 4, 7, 10, 11
STATE_SIZE = 12
# Indices into the int64 counts of one fusion.
ADDED, MERGED, PROMOTED, REJECTED, EVICTED, DROPPED = 0, 1, 2, 3, 4, 5

_BLOCK_MASK = np.uint64(0x7FFFFFFFFFFFFFFF) ^ np.uint64(1 | 1 << 21 | 1 << 42)
_HASH_FACTOR_1 = np.uint64(0x9E3779B97F4A7C15)
_HASH_FACTOR_2 = np.uint64(0xBF58476D1CE4E5B9)


@compiled
def _home(key, mask):
    """Returns the first slot to probe: the hash of the 2x2x2 block, plus the lowest bit of each coordinate."""
    h = np.uint64(key) & _BLOCK_MASK
    h = h * _HASH_FACTOR_1
    h ^= h >> np.uint64(32)
    h = h * _HASH_FACTOR_2
    h ^= h >> np.uint64(29)
    local = (key & 1) | ((key >> 20) & 2) | ((key >> 40) & 4)
    return np.int64(((h << np.uint64(3)) & np.uint64(mask)) | np.uint64(local))


@compiled
def find(table_keys, key):
    """Returns the slot that holds `key`, or the empty slot to store it in. Slots store key + 1; 0 means empty."""
    mask = len(table_keys) - 1
    slot = _home(key, mask)
    while table_keys[slot] != 0 and table_keys[slot] != key + 1:
        slot = (slot + 1) & mask
    return slot


@compiled
def _erase(table_keys, table_points, slot):
    """Empties a slot and shifts later entries back, so that every key is still found by probing."""
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
    """Removes point i from list `kind` (its class - 1)."""
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
    """Appends point i to the end of list `kind`: the most recently updated."""
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
    """Removes point i; the last point moves to index i."""
    (points, colours, fine, provenance, weight, stamps, spacing, keys, turns, confidence, depth_confidence, previous,
     following) = arrays  # fmt: skip
    _erase(table_keys, table_points, find(table_keys, keys[i]))
    _unlink(state, previous, following, int(provenance[i]) - 1, i)
    last = state[SIZE] - 1
    state[SIZE] = last
    if i == last:
        return
    kind = int(provenance[last]) - 1
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
    provenance[i] = provenance[last]
    weight[i] = weight[last]
    stamps[i] = stamps[last]
    spacing[i] = spacing[last]
    keys[i] = keys[last]
    turns[i] = turns[last]
    confidence[i] = confidence[last]
    depth_confidence[i] = depth_confidence[last]


@compiled
def _allocate_slot(arrays, table_keys, table_points, state, new_class, counts):
    """Returns the index for a new point, evicting one if the memory is full; -1 if the new point must be dropped.

    Of the lowest class in memory, the least recently updated point is evicted. A point never evicts one of a higher
    class. A point of this insertion is not evicted for another of its class.
    """
    _, _, _, _, _, _, _, keys, turns, _, _, previous, following = arrays
    if state[SIZE] < len(keys):
        state[SIZE] += 1
        return state[SIZE] - 1
    kind = 0
    while state[LENGTH + kind] == 0:
        kind += 1
    victim = state[HEAD + kind]
    if kind > new_class - 1 or (kind == new_class - 1 and turns[victim] == state[TURN]):
        return np.int64(-1)
    _erase(table_keys, table_points, find(table_keys, keys[victim]))
    _unlink(state, previous, following, kind, victim)
    counts[EVICTED] += 1
    return victim


@compiled
def _mixed_level(old, new, share, may_rise):
    """Weighted mean of two confidence levels (uint16); without `may_rise` at most the old one."""
    level = np.float32(old)
    mixed = np.uint16(level + share * (np.float32(new) - level) + np.float32(0.5))
    return mixed if may_rise or mixed < old else old


@compiled
def remove_at(arrays, table_keys, table_points, state, voxels, kind):
    """Removes the points of class `kind` in the voxels with these keys (N,) int64; returns their number.

    Keys below 0, empty voxels and points of other classes are skipped.
    """
    provenance = arrays[3]
    removed = 0
    for n in range(len(voxels)):
        if voxels[n] < 0:
            continue
        slot = find(table_keys, voxels[n])
        if table_keys[slot] == 0:
            continue
        i = np.int64(table_points[slot])
        if provenance[i] == kind:
            remove(arrays, table_keys, table_points, state, i)
            removed += 1
    return removed


@compiled
def fuse(arrays, table_keys, table_points, state, new_points, new_colours, new_provenance, new_keys, new_weight,
         new_spacing, new_stamps, new_confidence, new_depth_confidence, max_weight, min_spacing, created,
         counts):  # fmt: skip
    """Fuses new points into the cloud, voxel by voxel.

    Points of the same class are averaged (position, colour and confidences, by weight), but the confidences of an
    imagined point never rise after the insertion that created it: imagining it again is no evidence. A point replaces
    one of a lower class and never changes one of a higher class.

    Args:
        arrays: dense arrays of the cloud, in the order of `_cloud_state.ARRAYS`, and the two link arrays.
        table_keys, table_points, state: hash table and state vector, see the constants above.
        new_points: (N, 3) float32. new_colours: (N, 3) uint8. new_provenance: (N,) uint8.
        new_keys: (N,) int64 packed voxels; points with a key below 0 are skipped.
        new_weight: (N,) float32. new_spacing: (N,) float32 metres.
        new_stamps: (N,) or (1,) int64. new_confidence, new_depth_confidence: (N,) or (1,) uint16.
        max_weight: cap of the accumulated weight.
        min_spacing: lower bound of the stored spacing, metres.
        created: (capacity,) bool, all False; True afterwards for points that this insertion created or promoted.
        counts: (6,) int64, incremented; see ADDED ... DROPPED.
    """
    (points, colours, fine, provenance, weight, stamps, spacing, keys, turns, confidence, depth_confidence, previous,
     following) = arrays  # fmt: skip
    state[TURN] += 1
    turn = state[TURN]
    one_stamp = len(new_stamps) == 1
    one_confidence = len(new_confidence) == 1
    one_depth_confidence = len(new_depth_confidence) == 1
    last_key = np.int64(-1)
    i = np.int64(-1)
    for n in range(len(new_keys)):
        key = new_keys[n]
        if key < 0:
            continue
        new_class = np.int64(new_provenance[n])
        gain = min(new_weight[n], max_weight)
        stamp = new_stamps[0] if one_stamp else new_stamps[n]
        new_level = new_confidence[0] if one_confidence else new_confidence[n]
        new_depth_level = new_depth_confidence[0] if one_depth_confidence else new_depth_confidence[n]
        gap = max(new_spacing[n], min_spacing)
        if key != last_key:
            slot = find(table_keys, key)
            i = np.int64(table_points[slot]) if table_keys[slot] != 0 else np.int64(-1)
            last_key = key
        fresh = False
        if i < 0:
            i = _allocate_slot(arrays, table_keys, table_points, state, new_class, counts)
            if i < 0:
                counts[DROPPED] += 1
                last_key = np.int64(-1)
                continue
            slot = find(table_keys, key)  # search again: an eviction may have shifted entries
            table_keys[slot] = key + 1
            table_points[slot] = i
            keys[i] = key
            _append(state, previous, following, new_class - 1, i)
            counts[ADDED] += 1
            fresh = True
        elif provenance[i] > new_class:
            counts[REJECTED] += 1
            continue
        elif provenance[i] < new_class:
            _unlink(state, previous, following, int(provenance[i]) - 1, i)
            _append(state, previous, following, new_class - 1, i)
            counts[PROMOTED] += 1
            fresh = True
        if fresh:
            for k in range(3):
                points[i, k] = new_points[n, k]
                colours[i, k] = new_colours[n, k]
                fine[i, k] = np.uint16(new_colours[n, k]) << np.uint16(8)
            provenance[i] = new_class
            weight[i] = gain
            stamps[i] = stamp
            spacing[i] = gap
            turns[i] = turn
            confidence[i] = new_level
            depth_confidence[i] = new_depth_level
            created[i] = True
            continue
        counts[MERGED] += 1
        total = weight[i] + gain
        share = gain / total
        weight[i] = min(total, max_weight)
        for k in range(3):
            points[i, k] += share * (new_points[n, k] - points[i, k])
            old = np.float32(fine[i, k])
            mixed = old + share * (np.float32(np.int32(new_colours[n, k]) << np.int32(8)) - old)
            whole = np.int32(mixed + np.float32(0.5))
            fine[i, k] = whole
            colours[i, k] = min((whole + 128) >> 8, 255)
        may_rise = new_class != IMAGINED or created[i]  # the pixels of one insertion are one statement
        confidence[i] = _mixed_level(confidence[i], new_level, share, may_rise)
        depth_confidence[i] = _mixed_level(depth_confidence[i], new_depth_level, share, may_rise)
        stamps[i] = max(stamps[i], stamp)
        spacing[i] = min(spacing[i], gap)
        if turns[i] != turn:
            turns[i] = turn
            _unlink(state, previous, following, new_class - 1, i)
            _append(state, previous, following, new_class - 1, i)


@compiled
def sweep(arrays, table_keys, table_points, state, quota, centre, radius, oldest, depth, frame, margin, counts):
    """Checks the next `quota` points in cyclic order and removes expired and carved points.

    Args:
        arrays, table_keys, table_points, state: see `fuse`.
        quota: number of points to check.
        centre: (3,) float64 camera centre in world coordinates, metres.
        radius: points farther from `centre` expire, metres.
        oldest: points with an earlier stamp expire, nanoseconds.
        depth: (H, W) float32 depth of observed pixels, 0 = unknown; (0, 0) to disable carving. An imagined or
            estimated point is carved if the depth around its pixel lies behind it.
        frame: (13,) float64: rotation camera_from_world by rows, fx, fy, cx, cy.
        margin: metres by which the depth must exceed the point's depth, in addition to 5 % of the depth.
        counts: (2,) int64, incremented: expired, carved.
    """
    points, _, _, provenance, _, stamps, _, _, _, _, _, _, _ = arrays
    height, width = depth.shape
    far = radius * radius
    left = quota
    covers_all = state[SIZE] <= quota
    i = np.int64(0) if covers_all else state[SWEEP_AT]
    while left > 0 and state[SIZE] > 0:
        left -= 1
        if i >= state[SIZE]:
            if covers_all:
                break
            i = np.int64(0)
        x = np.float64(points[i, 0]) - centre[0]
        y = np.float64(points[i, 1]) - centre[1]
        z = np.float64(points[i, 2]) - centre[2]
        if x * x + y * y + z * z > far or stamps[i] < oldest:
            remove(arrays, table_keys, table_points, state, i)
            counts[0] += 1
            continue
        if provenance[i] < OBSERVED and height > 0:
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
    state[SWEEP_AT] = i


@compiled
def rebuild(table_keys, table_points, state, keys, provenance, previous, following, order):
    """Builds the table and the lists from dense arrays; False if two points share a voxel.

    Args:
        table_keys, table_points, state: empty hash table and state vector, filled in place.
        keys, provenance: (N,) arrays of the points.
        previous, following: link arrays, filled in place.
        order: (N,) point indices, least recently updated first.
    """
    for i in range(len(order)):
        slot = find(table_keys, keys[i])
        if table_keys[slot] != 0:
            return False
        table_keys[slot] = keys[i] + 1
        table_points[slot] = i
    for n in range(len(order)):
        i = order[n]
        _append(state, previous, following, int(provenance[i]) - 1, i)
    state[SIZE] = len(order)
    return True
