"""MaskVLM (arXiv 2208.02131) in plain PyTorch: an independent reference, and the opponent in speed measurements.

Shares no code with `mvlm_jax`. The losses and the optimizer are in `torch_pretraining.py`.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

FIRST_POSITION = {"roberta": 2, "bert": 0}  # of the position table's rows; RoBERTa leaves two unused
TOKEN_TYPES = {"roberta": 1, "bert": 2}
TEXT_EPSILON = {"roberta": 1e-5, "bert": 1e-12}
IMAGE_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class Part:
    width: int
    heads: int
    layers: int  # of an encoder, or of each cross encoder
    mlp_ratio: int = 4


BASE = Part(width=768, heads=12, layers=12)


@dataclasses.dataclass(frozen=True)
class Sizes:
    image_size: int = 224  # pixels a side
    patch: int = 16  # pixels a side
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    text_kind: str = "roberta"
    vocab_size: int = 50265
    positions: int = 512
    pad_id: int = 1
    image_encoder: Part = BASE
    text_encoder: Part = BASE
    cross: Part = dataclasses.replace(BASE, layers=3)
    decoder_layers: int = 3
    projection: int = 256
    image_pooling: str = "first"  # or mean
    text_pooling: str = "first"  # or mean
    token_head: str = "dense"  # or tied


class Attention(nn.Module):
    def __init__(self, part: Part):
        super().__init__()
        self.heads = part.heads
        self.query = nn.Linear(part.width, part.width)
        self.key = nn.Linear(part.width, part.width)
        self.value = nn.Linear(part.width, part.width)
        self.out = nn.Linear(part.width, part.width)

    def forward(self, x: Tensor, context: Tensor, context_mask: Tensor | None = None) -> Tensor:
        """From x [B, R, D] to context [B, S, D]; where context_mask [B, S] is false nothing is attended to."""
        attended = F.scaled_dot_product_attention(
            self._split(self.query(x)),
            self._split(self.key(context)),
            self._split(self.value(context)),
            attn_mask=None if context_mask is None else context_mask[:, None, None, :],
        )
        return self.out(attended.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Mlp(nn.Module):
    def __init__(self, part: Part):
        super().__init__()
        self.up = nn.Linear(part.width, part.width * part.mlp_ratio)
        self.down = nn.Linear(part.width * part.mlp_ratio, part.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class PreNormLayer(nn.Module):
    """Of the ViT."""

    def __init__(self, part: Part):
        super().__init__()
        self.attention_norm = nn.LayerNorm(part.width, IMAGE_EPSILON)
        self.attention = Attention(part)
        self.mlp_norm = nn.LayerNorm(part.width, IMAGE_EPSILON)
        self.mlp = Mlp(part)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed)
        return x + self.mlp(self.mlp_norm(x))


class PostNormLayer(nn.Module):
    """Of RoBERTa and BERT."""

    def __init__(self, part: Part, *, epsilon: float):
        super().__init__()
        self.attention = Attention(part)
        self.attention_norm = nn.LayerNorm(part.width, epsilon)
        self.mlp = Mlp(part)
        self.mlp_norm = nn.LayerNorm(part.width, epsilon)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention_norm(x + self.attention(x, x, mask))
        return self.mlp_norm(x + self.mlp(x))


class CrossLayer(nn.Module):
    """Self-attention, cross-attention, MLP; each pre-normed and residual."""

    def __init__(self, part: Part):
        super().__init__()
        self.self_norm = nn.LayerNorm(part.width, IMAGE_EPSILON)
        self.self_attention = Attention(part)
        self.cross_norm = nn.LayerNorm(part.width, IMAGE_EPSILON)
        self.cross_attention = Attention(part)
        self.mlp_norm = nn.LayerNorm(part.width, IMAGE_EPSILON)
        self.mlp = Mlp(part)

    def forward(self, x, mask, context, context_mask, rows=None) -> Tensor:
        """Outputs for the tokens in `rows` [B, R] only (all by default): the others are keys and values alone."""
        normed = self.self_norm(x)
        asking = normed if rows is None else take_rows(normed, rows)
        x = x if rows is None else take_rows(x, rows)
        x = x + self.self_attention(asking, normed, mask)
        if context is not None:
            x = x + self.cross_attention(self.cross_norm(x), context, context_mask)
        return x + self.mlp(self.mlp_norm(x))


class ImageEncoder(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        part = sizes.image_encoder
        patches = (sizes.image_size // sizes.patch) ** 2
        self.patch_embedding = nn.Linear(sizes.patch**2 * 3, part.width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, part.width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, part.width))
        self.position_embedding = nn.Parameter(torch.empty(1, patches + 1, part.width))
        self.layers = nn.ModuleList(PreNormLayer(part) for _ in range(part.layers))
        self.final_norm = nn.LayerNorm(part.width, IMAGE_EPSILON)

    def forward(self, patches: Tensor, patch_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Whole and masked images, in one pass over 2B."""
        whole = self.patch_embedding(patches)
        masked = torch.where(patch_mask[:, :, None], self.mask_token.to(whole.dtype), whole)
        return self._features(torch.cat([whole, masked])).chunk(2)

    def encode_whole(self, patches: Tensor) -> Tensor:
        return self._features(self.patch_embedding(patches))

    def _features(self, x: Tensor) -> Tensor:
        x = torch.cat([self.cls_token.to(x.dtype).expand(len(x), -1, -1), x], dim=1) + self.position_embedding
        for layer in self.layers:
            x = layer(x)
        return self.final_norm(x)


class TextEncoder(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        part, epsilon = sizes.text_encoder, TEXT_EPSILON[sizes.text_kind]
        self.first_position = FIRST_POSITION[sizes.text_kind]
        self.token_embedding = nn.Embedding(sizes.vocab_size, part.width)
        self.position_embedding = nn.Embedding(sizes.positions + self.first_position, part.width)
        self.type_embedding = nn.Embedding(TOKEN_TYPES[sizes.text_kind], part.width)
        self.embedding_norm = nn.LayerNorm(part.width, epsilon)
        self.layers = nn.ModuleList(PostNormLayer(part, epsilon=epsilon) for _ in range(part.layers))

    def forward(self, text: Tensor, text_mask: Tensor) -> Tensor:
        positions = torch.arange(text.shape[1], device=text.device) + self.first_position
        x = self.token_embedding(text) + self.position_embedding(positions) + self.type_embedding.weight[0]
        x = self.embedding_norm(x)
        for layer in self.layers:
            x = layer(x, text_mask)
        return x


class CrossEncoder(nn.Module):
    def __init__(self, part: Part, *, layers: int):
        super().__init__()
        self.blocks = nn.ModuleList(CrossLayer(part) for _ in range(layers))
        self.final_norm = nn.LayerNorm(part.width, IMAGE_EPSILON)

    def forward(self, x, mask, context, context_mask, rows=None) -> Tensor:
        for block in self.blocks[:-1]:
            x = block(x, mask, context, context_mask)
        return self.final_norm(self.blocks[-1](x, mask, context, context_mask, rows))


class Projection(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        self.dense = nn.Linear(sizes.cross.width, sizes.projection)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.dense(x).float(), dim=-1)


class TiedTokenHead(nn.Module):
    """BERT's language-model head."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        width = sizes.text_encoder.width
        self.dense = nn.Linear(sizes.cross.width, width)
        self.norm = nn.LayerNorm(width, 1e-5)
        self.bias = nn.Parameter(torch.empty(sizes.vocab_size))

    def forward(self, x: Tensor, token_embedding: Tensor) -> Tensor:
        return F.linear(self.norm(F.gelu(self.dense(x))), token_embedding).float() + self.bias


class MaskVLM(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        self.sizes = sizes
        self.image_encoder = ImageEncoder(sizes)
        self.text_encoder = TextEncoder(sizes)
        cross, width = sizes.cross, sizes.cross.width
        self.image_to_cross = to_width(sizes.image_encoder.width, width)
        self.text_to_cross = to_width(sizes.text_encoder.width, width)
        self.image_cross_encoder = CrossEncoder(cross, layers=cross.layers)
        self.text_cross_encoder = CrossEncoder(cross, layers=cross.layers)
        self.image_decoder = CrossEncoder(cross, layers=sizes.decoder_layers)
        self.pixel_head = nn.Linear(width, sizes.patch**2 * 3)
        tied = sizes.token_head == "tied"
        self.token_classifier = TiedTokenHead(sizes) if tied else nn.Linear(width, sizes.vocab_size)
        self.image_projection = Projection(sizes)
        self.text_projection = Projection(sizes)
        self.matching_head = nn.Linear(width, 2)
        self.temperature = nn.Parameter(torch.empty(()))
        self.register_buffer("mean", torch.tensor(sizes.mean), persistent=False)
        self.register_buffer("std", torch.tensor(sizes.std), persistent=False)
        self.apply(initialise)
        nn.init.constant_(self.temperature, 0.07)

    def patches(self, image: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> normalised RGB [B, N, pixels], patches row by row, pixels as (row, column, channel)."""
        pixels = (image.float() / 255 - self.mean) / self.std
        batch, patch = len(pixels), self.sizes.patch
        side = self.sizes.image_size // patch
        grid = pixels.view(batch, side, patch, side, patch, 3).permute(0, 1, 3, 2, 4, 5)
        return grid.reshape(batch, side * side, patch * patch * 3)

    def encode_image(self, patches: Tensor, patch_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Whole and masked images."""
        v, v_masked = self.image_encoder(patches, patch_mask)
        return self.image_to_cross(v), self.image_to_cross(v_masked)

    def encode_text(self, text: Tensor, text_mask: Tensor) -> Tensor:
        return self.text_to_cross(self.text_encoder(text, text_mask))

    def project(self, v: Tensor, w: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.project_image(v), self.project_text(w, text_mask)

    def project_image(self, v: Tensor) -> Tensor:
        """The class token, or the mean of the patches."""
        return self.image_projection(v[:, 1:].mean(dim=1) if self.sizes.image_pooling == "mean" else v[:, 0])

    def project_text(self, w: Tensor, text_mask: Tensor) -> Tensor:
        """The start token, or the mean of all but padding."""
        if self.sizes.text_pooling == "first":
            return self.text_projection(w[:, 0])
        kept = text_mask[:, :, None].to(w.dtype)
        return self.text_projection((w * kept).sum(dim=1) / kept.sum(dim=1))

    def classify_tokens(self, x: Tensor) -> Tensor:
        if self.sizes.token_head == "tied":
            return self.token_classifier(x, self.text_encoder.token_embedding.weight)
        return self.token_classifier(x)

    def encode_whole_image(self, image: Tensor) -> Tensor:
        """uint8 [B, H, W, 3], nothing masked."""
        dtype = self.image_encoder.patch_embedding.weight.dtype
        return self.image_to_cross(self.image_encoder.encode_whole(self.patches(image).to(dtype)))

    def embed_image(self, image: Tensor) -> Tensor:
        return self.project_image(self.encode_whole_image(image))

    def embed_text(self, text: Tensor) -> Tensor:
        text_mask = text != self.sizes.pad_id
        return self.project_text(self.encode_text(text, text_mask), text_mask)

    def match_features(self, v: Tensor, w: Tensor, text: Tensor) -> Tensor:
        """Logits [B, 2] of (no match, match) of encoded images and texts."""
        text_mask = text != self.sizes.pad_id
        first = torch.zeros(len(v), 1, dtype=torch.long, device=v.device)
        fused_image = self.image_cross_encoder(v, None, w, text_mask, first)[:, 0]
        fused_text = self.text_cross_encoder(w, text_mask, v, None, first)[:, 0]
        return self.matching_head(fused_image * fused_text)

    def clipped_temperature(self) -> Tensor:
        """In [0.001, 0.5]; the gradient passes as if it were not clipped."""
        return self.temperature + (self.temperature.clamp(0.001, 0.5) - self.temperature).detach()


def to_width(width: int, wanted: int) -> nn.Module:
    return nn.Identity() if width == wanted else nn.Linear(width, wanted)


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x [B, S, D], rows [B, R] -> [B, R, D]."""
    return x.gather(1, rows[:, :, None].expand(-1, -1, x.shape[2]))


def initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    for name, parameter in module.named_parameters(recurse=False):
        if name.endswith(("token", "position_embedding")) or isinstance(module, nn.Embedding):
            nn.init.trunc_normal_(parameter, std=0.02)
        elif isinstance(module, TiedTokenHead):
            nn.init.zeros_(parameter)


def jax_paths(model: MaskVLM) -> dict[str, str]:
    """For each parameter of the reference the path of ours that it corresponds to, stacked layers taken apart."""
    leaves = {nn.Linear: "kernel", nn.LayerNorm: "scale", nn.Embedding: "embedding"}
    paths = {}
    for name, _ in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        leaf = leaves[type(model.get_submodule(owner))] if leaf == "weight" else leaf
        path = "/".join([*owner.split("."), leaf] if owner else [leaf])
        paths[name] = re.sub(r"/blocks/(\d+)/", r"/block_\1/", path)
    return paths


def unstacked(params: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """A tree of our parameters (or gradients) by path; `layers/block/…` of shape [layers, …] as `layers/0/…` and on."""
    flat = {}
    for name, value in params.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= unstacked(value, f"{path}/")
        elif "/layers/block/" in path:
            for index, layer in enumerate(np.asarray(value)):
                flat[path.replace("/layers/block/", f"/layers/{index}/")] = layer
        else:
            flat[path] = np.asarray(value)
    return flat


def as_torch(value: np.ndarray, like: Tensor, *, path: str) -> Tensor:
    """One of our arrays in the layout of the reference's parameter: kernels are (in…, out…) there, (out, in) here.

    Raises:
      ValueError: the shapes do not correspond.
    """
    if path.endswith("/kernel"):
        out, width = like.shape
        legal = (width, out) in {
            (int(np.prod(value.shape[:cut])), int(np.prod(value.shape[cut:]))) for cut in range(1, value.ndim)
        }
        if not legal:  # a kernel that is already (out, in) would otherwise pass
            raise ValueError(f"{path} has shape {value.shape}, which does not fit {(width, out)}")
        value = value.reshape(width, out).T
    elif path.endswith("/bias") and value.ndim == 2:  # (heads, width of a head)
        value = value.reshape(-1)
    if value.shape != tuple(like.shape):
        raise ValueError(f"{path} has shape {value.shape}, which does not fit {tuple(like.shape)}")
    # In C order: a fused optimizer walks a parameter and its gradient as if both lay in memory alike.
    return torch.from_numpy(np.array(value, np.float32, order="C")).to(like.device)


def load_from_jax(model: MaskVLM, params: Mapping[str, Any]) -> None:
    """Copies our parameters in; nothing is changed unless all of them fit.

    Raises:
      ValueError: a parameter of either side has no counterpart, or one of another shape.
    """
    ours, theirs = unstacked(params), jax_paths(model)
    without = sorted(set(theirs.values()) - set(ours))
    left_over = sorted(set(ours) - set(theirs.values()))
    if without or left_over:
        raise ValueError(
            f"parameters do not correspond: the reference lacks a value for {without[:10]} ({len(without)} in all), "
            f"and has no place for {left_over[:10]} ({len(left_over)} in all)"
        )
    parameters = dict(model.named_parameters())
    values = {name: as_torch(ours[path], parameters[name], path=path) for name, path in theirs.items()}
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
