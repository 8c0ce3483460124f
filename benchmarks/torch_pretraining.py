"""The pre-training step of the PyTorch reference: masks, the four losses, AdamW."""

import math
import re
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch_maskvlm import MaskVLM, take_rows


class Masks(NamedTuple):
    patch_mask: Tensor  # [B, N] bool
    patch_slots: Tensor  # [B, M] the masked patches
    text: Tensor  # [B, L] with [MASK] in the masked places
    token_slots: Tensor  # [B, K] positions
    token_targets: Tensor  # [B, K] the tokens that were replaced
    token_weights: Tensor  # [B, K] 1 where the slot is masked


class Negatives(NamedTuple):
    """Indices into the batch, one of each for every pair."""

    text: Tensor  # [B]
    image: Tensor  # [B]
    valid: Tensor  # [B] bool; false where the whole group shares the pair's image


def draw_masks(
    text: Tensor,
    *,
    grid: int,
    special_ids: Tensor,
    mask_id: int,
    cell: int = 2,
    image_ratio: float = 0.6,
    text_ratio: float = 0.3,
) -> Masks:
    """Exactly ceil(image_ratio * cells) cells of each image, max(1, round(text_ratio * n)) of n ordinary tokens."""
    batch, length = text.shape
    side = grid // cell
    hidden_cells = math.ceil(round(image_ratio * side * side, 9))
    ranks = torch.rand(batch, side * side, device=text.device).argsort(dim=1).argsort(dim=1)
    cells = (ranks < hidden_cells).view(batch, side, side)
    patch_mask = cells.repeat_interleave(cell, dim=1).repeat_interleave(cell, dim=2).flatten(1)
    patch_slots = (~patch_mask).int().argsort(dim=1, stable=True)[:, : hidden_cells * cell * cell]

    ordinary = ~torch.isin(text, special_ids)
    tokens = ordinary.sum(dim=1)
    count = (text_ratio * tokens).round().clamp(min=1).minimum(tokens)
    order = torch.rand(text.shape, device=text.device).masked_fill(~ordinary, 2.0).argsort(dim=1)
    slots = order[:, : max(1, math.ceil(round(text_ratio * (length - 2), 9)))]
    weights = (torch.arange(slots.shape[1], device=text.device) < count[:, None]).float()
    hidden = order.argsort(dim=1) < count[:, None]
    return Masks(patch_mask, patch_slots, text.masked_fill(hidden, mask_id), slots, text.gather(1, slots), weights)


@torch.no_grad()
def draw_negatives(z_image: Tensor, z_text: Tensor, image_id: Tensor, temperature: Tensor, *, group: int) -> Negatives:
    """By the softmax of the similarity inside groups of consecutive pairs, never one that shares the image."""
    z_image, z_text, image_id = (x.unflatten(0, (-1, group)) for x in (z_image, z_text, image_id))
    same = image_id[:, :, None] == image_id[:, None, :]
    logits = (z_image @ z_text.mT / temperature).masked_fill(same, -torch.inf)
    start = torch.arange(len(same), device=same.device)[:, None] * group

    def sample(logits: Tensor) -> Tensor:
        # The Gumbel trick; unlike torch.multinomial it accepts a row without a legal choice.
        gumbel = -torch.empty_like(logits).exponential_().log()
        return ((logits + gumbel).argmax(dim=2) + start).flatten()

    return Negatives(sample(logits), sample(logits.mT), ~same.all(dim=2).flatten())


def pretraining_losses(
    model: MaskVLM,
    image: Tensor,
    text: Tensor,
    image_id: Tensor,
    masks: Masks,
    *,
    group: int,
    condition_on: str = "unmasked",
    negatives: Negatives | None = None,
    autocast: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """MIM, MLM, ITC and ITM of a batch: image [B, H, W, 3] uint8, text [B, L], image_id [B].

    Args:
      negatives: None: they are drawn.
      autocast: the lower precision of the model's matrix products; the losses are always float32.
    """
    with torch.autocast(image.device.type, dtype=autocast, enabled=autocast is not None):
        patches = model.patches(image)
        text_mask = text != model.sizes.pad_id
        v, v_masked = model.encode_image(patches, masks.patch_mask)
        both = model.encode_text(torch.cat([text, masks.text]), torch.cat([text_mask, text_mask]))
        w, w_masked = both.chunk(2)

        shown = {"unmasked": w, "masked": w_masked, "none": None}[condition_on]
        fused = model.image_cross_encoder(v_masked, None, shown, text_mask)
        rebuilt = model.image_decoder(fused, None, shown, text_mask, masks.patch_slots + 1)
        pixels = model.pixel_head(rebuilt)

        shown = {"unmasked": v, "masked": v_masked, "none": None}[condition_on]
        fused = model.text_cross_encoder(w_masked, text_mask, shown, None, masks.token_slots)
        words = model.classify_tokens(fused)

        z_image, z_text = model.project(v, w, text_mask)
        temperature = model.clipped_temperature()
        if negatives is None:
            with torch.autocast(image.device.type, enabled=False):
                negatives = draw_negatives(z_image, z_text, image_id, temperature, group=group)

        # Own text, wrong text, wrong image.
        images = torch.cat([v, v, v[negatives.image]])
        texts = torch.cat([w, w[negatives.text], w])
        texts_mask = torch.cat([text_mask, text_mask[negatives.text], text_mask])
        first = torch.zeros(len(images), 1, dtype=torch.long, device=image.device)
        fused_image = model.image_cross_encoder(images, None, texts, texts_mask, first)[:, 0]
        fused_text = model.text_cross_encoder(texts, texts_mask, images, None, first)[:, 0]
        verdicts = model.matching_head(fused_image * fused_text)

    return {
        "mim": F.l1_loss(pixels.float(), take_rows(patches, masks.patch_slots)),
        "mlm": masked_text_loss(words.float(), masks),
        "itc": contrastive_loss(z_image, z_text, image_id, temperature),
        "itm": matching_loss(verdicts.float(), negatives.valid),
    }


def masked_text_loss(logits: Tensor, masks: Masks) -> Tensor:
    losses = F.cross_entropy(logits.flatten(0, 1), masks.token_targets.flatten(), reduction="none")
    return (losses * masks.token_weights.flatten()).sum() / masks.token_weights.sum().clamp(min=1)


def contrastive_loss(z_image: Tensor, z_text: Tensor, image_id: Tensor, temperature: Tensor) -> Tensor:
    """Pairs of one image share the target equally."""
    logits = z_image @ z_text.T / temperature
    target = F.normalize((image_id[:, None] == image_id).float(), p=1, dim=1)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def matching_loss(logits: Tensor, valid: Tensor) -> Tensor:
    """logits [3B, 2] of own text, wrong text, wrong image; a pairing without a legal negative does not count."""
    own = torch.ones_like(valid)
    target = torch.cat([own, ~own, ~own]).long()
    weights = torch.cat([own, valid, valid]).float()
    return (F.cross_entropy(logits, target, reduction="none") * weights).sum() / weights.sum()


def learning_rate(update: int, *, steps: int, warmup_steps: int, peak: float, final: float) -> float:
    """Of the update (the first is 1): linear up to `peak` at `warmup_steps`, then a cosine down to `final`."""
    if update < warmup_steps:
        return peak * update / warmup_steps
    progress = min(1.0, (update - warmup_steps) / (steps - warmup_steps))
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(
    model: MaskVLM, *, weight_decay: float = 0.05, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.AdamW:
    """Six groups: each encoder and the rest, decayed or not; `set_learning_rates` before every step.

    The image encoder's mask token belongs to the rest: no published encoder has one. Matrices and the tables of tokens
    are decayed; biases, norms, positions, token types, single tokens and the temperature are not.
    """
    groups: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        encoder = re.match(r"(image|text)_encoder\.(?!mask_token)", name)
        decayed = parameter.dim() == 2 and not re.search(r"(position|type)_embedding", name)
        groups.setdefault((f"{encoder[1]}_encoder" if encoder else "rest", decayed), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "name": name, "weight_decay": weight_decay if decayed else 0.0}
            for (name, decayed), parameters in groups.items()
        ],
        betas=betas,
        fused=True,
    )


def set_learning_rates(optimizer: torch.optim.Optimizer, rates: dict[str, float]) -> None:
    """Of the groups `image_encoder`, `text_encoder` and `rest`."""
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]]
