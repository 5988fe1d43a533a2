"""The bytes of a masked update: its key stream, its sealed seed, and its signature.

docs/masked-protocol.md has the steps of the protocol, and who learns what. Here is all that a
client in another language needs besides, and in :mod:`gradshard_core.mask_keeper.request` what a
keeper needs.

**Notation.** Sums of elements are modulo 2ᵏ. ‖ is concatenation. frame(a, b, …) is, for each text
in turn, its length in 8 bytes, most significant first, and its UTF-8. hex is hexadecimal in lower
case. JSON is in ASCII, with sorted names, without spaces, and with numbers as Python writes them
(``4.0``, ``1e-05``).

**Terms.** ``spec`` in ``spec.json`` of the round has ``clients``, the roster; ``min_clients``; and
in ``masked``: ``keeper``, its public key in hex; ``bound``, C; ``bits``, b; ``ring_bits``, k, which
is 32 or 64; ``max_samples``, n⁺; and ``dp`` if there is noise. A ticket has ``masked`` with these
``terms``, ``min_clients``, ``roster`` (the h below) and ``clients``, the number of ids. The layout,
in this order, is ``layout`` of spec or ticket, or else that of the model.

The *step* is the least power of two in which C has at most 2ᵇ⁻¹ - 1 steps. With N clients on the
roster, a round is opened only if N · n⁺ · (2ᵇ⁻¹ - 1) < 2ᵏ⁻¹, so that no sum wraps around, and if
2ᵏ⁻¹ steps are finite in the type of each tensor.

**Encode.** With n samples, an element x becomes q = n · round(clip(x, -C, C) / step) mod 2ᵏ, ties
to even. n is one more element, the last one. A NaN or an infinity is an error.

**Mask.** The mask m is the key stream of AES-256 in counter mode, with the seed as key: block j is
the encryption of j, 16 bytes, most significant first, from j = 0. It is read as elements of the
ring, least significant byte first, in the order of the layout; the one after the last is for the
count. The masked elements are q + m. An update has at most 2⁴⁸ bytes of them.

The seed is 32 secret bytes that mask this update alone. Python clients derive it and e, 32 bytes
each, from their private key K by HKDF-SHA256 (RFC 5869) without a salt, so a repeated upload has
the same bytes:

    seed ‖ e = HKDF(K, frame("gradshard seed 1", d, s, keeper) ‖ info)

- d is the SHA-256 of the update's bytes, in hex, and keeper the keeper's public key in hex.
- s is the factor of the elements (n; with noise s / g), as Python's ``float.hex`` writes it: 300 is
  ``0x1.2c00000000000p+8``.

**Seal.** The seed is sealed to the keeper's public key with HPKE (RFC 9180), base mode, one
message, without associated data: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM. The
ephemeral private key is e; any other serves that nothing else is sealed with. The sealed seed has
80 bytes, the encapsulated key and the ciphertext.

    info = frame("gradshard masked round 1", round, client, h, min_clients, encoding)

- h is the SHA-256, in hex, of frame(ids of the roster, sorted); ``min_clients`` is in decimal.
- encoding is JSON: ``bits``, ``bound``, ``elements`` (their number, without the count), ``layout``
  (the SHA-256 of ``[[name, dtype, shape], …]`` as JSON, in hex), ``max_samples``, ``ring_bits``.

**Sign.** The client signs info ‖ sealed seed with its Ed25519 key K (RFC 8032).

**Upload.** The update has one tensor, ``masked``: ``U32`` or ``U64``, one dimension, the masked
elements. ``__metadata__`` has ``masked_count``, the masked count in decimal, and ``sealed_seed``
and ``signature``, 80 and 64 bytes in hex; no ``num_samples``.

**Decode.** The sum S of the q is read as a signed integer. S · step / Σn is computed in float64,
and rounded to the type of the tensor; for F16 and BF16 to float32 before.

**With noise** (clip C and noise multiplier z of ``dp``), these differ:

- encoding also has ``dp``, an object with ``clip``, ``delta`` and ``noise_multiplier``; ``bound``
  is C, ``bits`` is 0, and ``max_samples`` is 1. The count is 1.
- q = trunc(s · x / g), with s = min(1, C / (‖x‖ · (1 + 2⁻¹⁰))). The grid is g = zC / σ_t, with
  σ_t = 2480 √(1 + 512² + …) of t summands, and the least t from 1 to 3 for which σ_t ≥ 128 z √d,
  or 3; d is the number of elements.
- The average is S · g / Σn, where S has the noise.
- A round is opened only if N · ⌊C / g⌋ + 32767 · (1 + 512 + …) < 2ᵏ⁻¹.
"""
