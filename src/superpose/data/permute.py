"""A shuffling that nothing has to store."""


def permute(index: int, size: int, key: int) -> int:
    """Where a pseudo-random permutation of `size` numbers puts `index`, without storing the permutation.

    A Feistel network permutes the numbers of the next even power of two; numbers that land outside are put
    through it again until they land inside (cycle walking), which is a permutation of the rest.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            # A multiplicative hash (splitmix64's finaliser) of the right half keyed by the turn.
            mixed = (right + key + turn * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
            mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
            mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ ((mixed ^ (mixed >> 31)) & mask)
        index = (left << half) | right
        if index < size:
            return index
