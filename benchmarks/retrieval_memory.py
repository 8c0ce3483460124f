"""Peak host memory of ranking and of listing the pairs to re-rank, on random embeddings of the size of COCO.

Example:
  python benchmarks/retrieval_memory.py --images=5000 --captions_each=5 --candidates=256
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence

import numpy as np
from contenders import process_peak

from mvlm_jax.evaluation import ranking
from mvlm_jax.evaluation.retrieval import Pairs


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions_each", type=int, default=5)
    parser.add_argument("--candidates", type=int, default=256)
    parser.add_argument("--embedding", type=int, default=256)
    parser.add_argument("--host_bytes", type=int, default=2**30)
    arguments = parser.parse_args(argv)
    started = time.perf_counter()
    images, captions = arguments.images, arguments.images * arguments.captions_each
    rng = np.random.default_rng(0)
    z_image, z_text = (rng.standard_normal((n, arguments.embedding), np.float32) for n in (images, captions))
    of_image, of_caption = np.arange(images), np.repeat(np.arange(images), arguments.captions_each)
    options = {"k": arguments.candidates, "host_bytes": arguments.host_bytes}
    to_text = ranking.rank(z_image, z_text, of_image, of_caption, **options)
    to_image = ranking.rank(z_text, z_image, of_caption, of_image, **options)
    pairs = Pairs(to_text.candidates, to_image.candidates, captions=captions)
    matching = rng.standard_normal(len(pairs), np.float32)
    ranks = [
        ranking.reranked(to_text, pairs.of_images(matching), k=arguments.candidates),
        ranking.reranked(to_image, pairs.of_captions(matching), k=arguments.candidates),
    ]
    summary = {
        "images": images,
        "captions": captions,
        "pairs": len(pairs),
        "tr_r1": ranking.recall(ranks[0], at=1),
        "ir_r1": ranking.recall(ranks[1], at=1),
        "peak_gib": process_peak() / 2**10,
        "seconds": time.perf_counter() - started,
    }
    print(json.dumps({name: round(value, 3) for name, value in summary.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
