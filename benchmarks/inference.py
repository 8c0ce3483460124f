"""Encoding, matching and re-ranking, as `bench.py` measures them: ours, the PyTorch reference, transformers' encoders.

All take the same arrays from the host and bring their results back to it. Weights are random.
"""

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from contenders import Setup, make_batches, reference_model

from mvlm_jax.evaluation.batching import index_batches

ENCODERS = ("encode_image", "encode_text")  # all that transformers has
VERBS = {"encode_image": "images", "encode_text": "texts", "match": "pairs", "rerank": "pairs"}
CANDIDATES = 32  # texts that are compared with each image in re-ranking


class Requests:
    """A batch of images and texts, and the candidates of each image. One request works through all of it."""

    def __init__(self, setup: Setup):
        batch = make_batches(setup.config())[0]
        self.image, self.text, self.rows = batch["image"], batch["text"], setup.batch_size
        order = np.tile(np.arange(self.rows), (self.rows, 1))
        self.candidates = np.random.default_rng(0).permuted(order, axis=1)[:, :CANDIDATES]

    def count(self, verb: str) -> int:
        """Images, texts or pairs of one request."""
        return self.candidates.size if verb == "rerank" else self.rows


class Inference:
    """Runs a verb several times."""

    verbs: dict[str, Callable[[], np.ndarray]]
    where: str

    def prepare(self, verb: str) -> dict[str, Any]:
        started = time.perf_counter()
        self.verbs[verb]()
        first = time.perf_counter() - started
        self.verbs[verb]()
        return {"first_s": first, "where": self.where, "count": self.requests.count(verb)}

    def run(self, verb: str, times: int) -> dict[str, Any]:
        started = time.perf_counter()
        for _ in range(times):
            self.verbs[verb]()
        return {"seconds": time.perf_counter() - started}


class NoSource:
    """Of a split whose images are all in memory."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Any:
        raise IndexError(index)

    def example_id(self, index: int) -> str:
        raise IndexError(index)


class Jax(Inference):
    """What `mvlm_jax.load` and `mvlm evaluate` run."""

    def __init__(self, setup: Setup):
        import jax

        from mvlm_jax.data.images import ImageSpec
        from mvlm_jax.data.pipeline import EvalSplit
        from mvlm_jax.evaluation import retrieval
        from mvlm_jax.evaluation.batching import compute, place
        from mvlm_jax.models.maskvlm import MaskVLM
        from mvlm_jax.tasks.registry import describe_task
        from mvlm_jax.training.streams import Streams

        self.requests = Requests(setup)
        image, text = self.requests.image, self.requests.text
        task = describe_task(setup.config())
        model = task.model
        params = jax.jit(task.init)(Streams(seed=0, step=jax.numpy.int32(0)).key("init"))
        self.where = f"jax {jax.__version__}, {jax.devices()[0].device_kind}"

        def computed(method, *inputs):
            return np.asarray(compute(model, params, *place(inputs, params=params), method=method))

        split = EvalSplit(
            captions=text, caption_image=np.arange(len(text), dtype=np.int32), pixels=image,
            image_ids=[str(index) for index in range(len(image))], records=list(range(len(image))), left_out={},
            source=NoSource(), spec=ImageSpec(size=setup.image_size, max_pixels=setup.image_size**2),
        )  # fmt: skip
        no_images = np.zeros((len(text), 0), np.int64)
        pairs = retrieval.Pairs(self.requests.candidates, no_images, captions=len(text))
        texts = functools.cache(lambda: computed(MaskVLM.encode_text, text))
        self.verbs = {
            "encode_image": lambda: computed(MaskVLM.embed_image, image),
            "encode_text": lambda: computed(MaskVLM.embed_text, text),
            "match": lambda: computed(MaskVLM.pair_logits, image, text),
            "rerank": lambda: retrieval.match_pairs(
                model, params, split, pairs, texts(), batch_size=self.requests.rows
            ),
        }


class Torch(Inference):
    """The PyTorch reference, eager."""

    def __init__(self, setup: Setup):
        import torch

        self.requests, self._torch = Requests(setup), torch
        self._device, self.where = torch_device(torch)
        model = reference_model(setup.config()).to(self._device, getattr(torch, setup.dtype)).eval()
        self._model = model
        image, text = self.requests.image, self.requests.text.astype(np.int64)
        self.verbs = {
            "encode_image": self._verb(lambda: model.embed_image(self._put(image))),
            "encode_text": self._verb(lambda: model.embed_text(self._put(text))),
            "match": self._verb(lambda: self._match(self._put(image), self._put(text))),
            "rerank": self._verb(lambda: self._rerank(image, text)),
        }
        mask = self.requests.text != model.sizes.pad_id
        self._texts = functools.cache(lambda: model.encode_text(self._put(text), self._put(mask)).cpu())

    def _match(self, image: Any, text: Any) -> Any:
        v = self._model.encode_whole_image(image)
        return self._model.match_features(v, self._model.encode_text(text, text != self._model.sizes.pad_id), text)

    def _rerank(self, image: np.ndarray, text: np.ndarray) -> Any:
        """Batches of pairs of kept text features with images that are encoded once."""
        v, w, scores = self._model.encode_whole_image(self._put(image)), self._texts(), []
        images = np.repeat(np.arange(len(image)), self.requests.candidates.shape[1])
        texts = self.requests.candidates.ravel()
        for chunk in index_batches(len(images), self.requests.rows):
            slots, captions = self._put(images[chunk]), texts[chunk]
            features = w[self._torch.from_numpy(captions)].to(self._device)
            scores.append(self._model.match_features(v[slots], features, self._put(text[captions])).float().cpu())
        return self._torch.cat(scores)

    def _put(self, x: np.ndarray) -> Any:
        return self._torch.from_numpy(x).to(self._device)

    def _verb(self, compute: Callable[[], Any]) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            with self._torch.inference_mode():
                return compute().float().cpu().numpy()

        return run


class Transformers(Inference):
    """ViT and RoBERTa of transformers, of the same sizes; the first token's features are brought back."""

    def __init__(self, setup: Setup):
        import torch
        import transformers

        self.requests = Requests(setup)
        device, self.where = torch_device(torch)
        self.where += f", transformers {transformers.__version__}"
        config, dtype = setup.config(), getattr(torch, setup.dtype)
        shared = {"hidden_act": "gelu", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        vit = transformers.ViTConfig(
            image_size=config.image.size, patch_size=config.image_encoder.patch, layer_norm_eps=1e-6,
            **_sizes(config.image_encoder), **shared,
        )  # fmt: skip
        roberta = transformers.RobertaConfig(
            vocab_size=config.text_encoder.vocab_size, max_position_embeddings=config.text_encoder.positions + 2,
            type_vocab_size=1, layer_norm_eps=1e-5, **_sizes(config.text_encoder), **shared,
        )  # fmt: skip
        torch.manual_seed(0)
        options = {"add_pooling_layer": False}
        image_model = transformers.ViTModel(vit, **options).to(device, dtype).eval()
        text_model = transformers.RobertaModel(roberta, **options).to(device, dtype).eval()
        mean, std = (torch.tensor(config.image[name], device=device)[:, None, None] for name in ("mean", "std"))
        image, text = self.requests.image, self.requests.text.astype(np.int64)

        def encode_image() -> np.ndarray:
            with torch.inference_mode():
                pixels = torch.from_numpy(image).to(device).permute(0, 3, 1, 2).float() / 255
                features = image_model(pixel_values=((pixels - mean) / std).to(dtype)).last_hidden_state
                return features[:, 0].float().cpu().numpy()

        def encode_text() -> np.ndarray:
            with torch.inference_mode():
                tokens = torch.from_numpy(text).to(device)
                mask = (tokens != roberta.pad_token_id).long()
                features = text_model(input_ids=tokens, attention_mask=mask).last_hidden_state
                return features[:, 0].float().cpu().numpy()

        self.verbs = {"encode_image": encode_image, "encode_text": encode_text}


def _sizes(part: Any) -> dict[str, int]:
    return {
        "hidden_size": part.width, "num_hidden_layers": part.layers, "num_attention_heads": part.heads,
        "intermediate_size": part.width * part.mlp_ratio,
    }  # fmt: skip


def torch_device(torch: Any) -> tuple[Any, str]:
    """The device, and what to call it; on a CPU with as many threads as this process may use."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32, as JAX multiplies float32 there
        return torch.device("cuda"), f"torch {torch.__version__}, {torch.cuda.get_device_name()}"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch.device("cpu"), f"torch {torch.__version__}, cpu"


CONSTRUCTORS: dict[str, Callable[[Setup], Inference]] = {
    "jax_inference": Jax,
    "torch_inference": Torch,
    "transformers": Transformers,
}
