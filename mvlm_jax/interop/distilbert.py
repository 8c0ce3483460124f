"""DistilBERT, as transformers names it: BERT without token types."""

from mvlm_jax.interop.family import HEADS, SAME, ConfigNames, Entry, Naming, named_layer, norm
from mvlm_jax.interop.text_family import TextFamily
from mvlm_jax.models.text_encoder import TextEncoder

NAMING = Naming(
    title="DistilBERT of transformers",
    entries=(
        Entry("token_embedding/embedding", "embeddings.word_embeddings.weight", SAME),
        Entry("position_embedding/embedding", "embeddings.position_embeddings.weight", SAME),
        *norm("embedding_norm", "embeddings.LayerNorm"),
        *named_layer(
            projections=("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
            norms=("sa_layer_norm", "output_layer_norm"),
            mlp=("ffn.lin1", "ffn.lin2"),
            start="transformer.layer.{n}.",
        ),
    ),
    replacements=(),
    ignored=(
        HEADS,
        (r"pre_classifier\..*", "a classifier of another task"),
        (r"vocab_(transform|layer_norm|projector)\..*", "the head of DistilBERT's pre-training"),
        (r"embeddings\.position_ids", "a constant, not a weight"),
    ),
)

DISTILBERT = TextFamily(
    kind="distilbert",
    namings=(NAMING,),
    model_types=("distilbert",),
    architecture="DistilBertModel",
    prefixes=("distilbert",),
    anchor="embeddings.word_embeddings.weight",
    module=TextEncoder,
    config_names=ConfigNames(
        width="dim", layers="n_layers", heads="n_heads", hidden="hidden_dim", activation="activation", epsilon=""
    ),
    pooling_layer=False,
    tokenizer="bert",
    epsilon=1e-12,
)
