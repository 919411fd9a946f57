"""Other people's implementations of our models, with weights under the names that ours use.

Each function takes the sizes of a case as our worker reads them and gives a module; `module(**inputs)` gives named
outputs.
"""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb, get_3d_rotary_pos_embed
from rotary_embedding_torch import RotaryEmbedding
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm


def scores_of_defined_numbers(attention, query, key, attention_mask=None, original=Attention.get_attention_scores):
    """Older PyTorch (1.13) lets `baddbmm` of small matrices read its first argument though it counts nothing (beta 0),
    and diffusers passes memory that was never written: now and then a score was not a number. A mask of zeros avoids it.
    """
    if attention_mask is None:
        attention_mask = query.new_zeros(query.shape[0], query.shape[1], key.shape[1])
    return original(attention, query, key, attention_mask)


Attention.get_attention_scores = scores_of_defined_numbers


class Unet(UNet2DConditionModel):
    """An image model: the frames of a clip are images with the clip's time and text."""

    # Attention that turns queries and keys by the places of a frame, of these rows and columns.
    turning = ()

    def forward(self, sample, time, text):
        batch, _, frames, _, _ = sample.shape
        images = sample.transpose(1, 2).flatten(0, 1)
        time, text = (per_clip.repeat_interleave(frames, 0) for per_clip in (time, text))
        for processor in self.turning:
            processor.frame = images.shape[-2:]
        moved = super().forward(images, 1000 * time, text).sample
        return {"velocity": moved.unflatten(0, (batch, frames)).transpose(1, 2)}


def unet(sizes):
    down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in sizes["attention"]]
    module = Unet(
        sample_size=sizes["height"],
        in_channels=sizes["latent_channels"],
        out_channels=sizes["latent_channels"],
        block_out_channels=sizes["channels"],
        layers_per_block=sizes["layers_per_block"],
        down_block_types=down,
        up_block_types=[name.replace("Down", "Up") for name in reversed(down)],
        cross_attention_dim=sizes["text_width"],
        # The library's name for the number of heads.
        attention_head_dim=sizes["heads"],
        norm_num_groups=sizes["norm_groups"],
    )
    attentions = [part for part in module.modules() if isinstance(part, Attention)]
    for attention in attentions if sizes["qk_norm"] else []:
        norm_queries_and_keys(attention)
    if sizes["rope"]:
        for attention in attentions:
            attention.set_processor(TurningProcessor())
        module.turning = [attention.processor for attention in attentions]
    return module


class TextEncoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.text_model = CLIPTextModel(config).text_model

    def forward(self, tokens):
        found = self.text_model(input_ids=tokens)
        return {"hidden": found.last_hidden_state, "pooled": found.pooler_output}


def text_config(sizes, config):
    return CLIPTextConfig(
        vocab_size=sizes["vocabulary"],
        hidden_size=config["width"],
        intermediate_size=4 * config["width"],
        num_hidden_layers=config["layers"],
        num_attention_heads=config["heads"],
        max_position_embeddings=config["tokens"],
        hidden_act="quick_gelu",
        eos_token_id=sizes["end"],
    )


def text_encoder(sizes):
    return TextEncoder(text_config(sizes, sizes["config"]))


class Clip(CLIPModel):
    def forward(self, pixels, tokens):
        return {
            "image_features": self.get_image_features(pixel_values=pixels),
            "text_features": self.get_text_features(input_ids=tokens),
        }


def clip(sizes):
    image, text = sizes["config"]["image"], sizes["config"]["text"]
    vision = CLIPVisionConfig(
        hidden_size=image["width"],
        intermediate_size=4 * image["width"],
        num_hidden_layers=image["layers"],
        num_attention_heads=image["heads"],
        image_size=image["image"],
        patch_size=image["patch"],
        hidden_act="quick_gelu",
    )
    config = CLIPConfig.from_text_vision_configs(text_config(sizes, text), vision, projection_dim=image["projection"])
    module = Clip(config)
    # The temperature of its training, which features do not depend on.
    del module.logit_scale
    return module


class SpatialVae(AutoencoderKL):
    def forward(self, frames, latents):
        found = self.encode(frames).latent_dist
        return {"mean": found.mean, "log_variance": found.logvar, "decoded": self.decode(latents).sample}


def spatial_vae(sizes):
    levels = len(sizes["block_out_channels"])
    return SpatialVae(
        block_out_channels=sizes["block_out_channels"],
        layers_per_block=sizes["layers_per_block"],
        latent_channels=sizes["latent_channels"],
        norm_num_groups=sizes["norm_groups"],
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
    )


class Convolution(nn.Module):
    """GroupNorm, SiLU and Conv3d of PyTorch; over the column of each pixel, or over the clip."""

    def __init__(self, sizes, one_dimensional):
        super().__init__()
        channels = sizes["channels"]
        kernel = (3, 1, 1) if one_dimensional else (3, 3, 3)
        self.frames, self.one_dimensional = sizes["frames"], one_dimensional
        self.norm = nn.GroupNorm(sizes["groups"], channels)
        self.conv = nn.Conv3d(channels, channels, kernel, padding=tuple(size // 2 for size in kernel))

    def forward(self, clips, text):
        _, c, h, w = clips.shape
        clip = clips.unflatten(0, (-1, self.frames)).transpose(1, 2)  # b c t h w
        if self.one_dimensional:
            # Every pixel is a clip of its own, one pixel in size.
            b = clip.shape[0]
            pixels = clip.permute(0, 3, 4, 1, 2).reshape(b * h * w, c, self.frames, 1, 1)
            branch = self.conv(nn.functional.silu(self.norm(pixels)))
            branch = branch.reshape(b, h, w, c, self.frames).permute(0, 3, 4, 1, 2)
        else:
            branch = self.conv(nn.functional.silu(self.norm(clip)))
        return {"moved": clips + branch.transpose(1, 2).reshape(clips.shape)}


def along_axes(places, shares):
    """Rotary angles of tokens by rotary-embedding-torch: `places` (axis, token), each axis with its share of a head."""
    angles = [RotaryEmbedding(dim=share)(place.float()) for place, share in zip(places, shares)]
    angles = torch.cat(angles, -1)
    return angles.cos(), angles.sin()


def time_and_space(frames, height, width, head_dim):
    """Cosines and sines of the tokens of a clip, in the order frame, row, column."""
    if head_dim % 16 == 0:
        # The shares ¼, ⅜, ⅜ are whole pairs of channels: diffusers has them as CogVideoX does.
        return get_3d_rotary_pos_embed(head_dim, ((0, 0), (height, width)), (height, width), frames)
    space = head_dim * 3 // 8 // 2 * 2
    places = torch.cartesian_prod(torch.arange(frames), torch.arange(height), torch.arange(width)).T
    return along_axes(places, (head_dim - 2 * space, space, space))


class NormedProcessor:
    """What diffusers' Attention runs: its own projections, scores and layout, with a norm of queries and keys and, where
    angles are given, a rotary turn between them."""

    def __call__(self, attention, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary=None):
        to_text = encoder_hidden_states is not None
        context = encoder_hidden_states if to_text else hidden_states
        heads = lambda x: x.unflatten(-1, (attention.heads, -1)).transpose(1, 2)  # b heads tokens d
        query = attention.norm_q(heads(attention.to_q(hidden_states)))
        key = attention.norm_k(heads(attention.to_k(context)))
        if rotary is not None:
            query = apply_rotary_emb(query, rotary)
            key = key if to_text else apply_rotary_emb(key, rotary)
        value = heads(attention.to_v(context))
        scores = attention.get_attention_scores(query.flatten(0, 1), key.flatten(0, 1))
        mixed = torch.bmm(scores, value.flatten(0, 1)).unflatten(0, (-1, attention.heads))
        return attention.to_out[0](mixed.transpose(1, 2).flatten(2))


class TurningProcessor(NormedProcessor):
    """Attention within a frame, turned by row and column, a half of a head each; attention to the text is not turned."""

    def __call__(self, attention, hidden_states, encoder_hidden_states=None, attention_mask=None):
        rotary = None
        if encoder_hidden_states is None:
            rows, columns = self.frame
            while rows * columns > hidden_states.shape[1]:
                rows, columns = rows // 2, columns // 2
            head_dim = attention.to_q.out_features // attention.heads
            for_rows = head_dim // 4 * 2
            places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).T
            rotary = along_axes(places, (for_rows, head_dim - for_rows))
        return super().__call__(attention, hidden_states, encoder_hidden_states, attention_mask, rotary)


def norm_queries_and_keys(attention):
    head_dim = attention.to_q.out_features // attention.heads
    attention.norm_q, attention.norm_k = LlamaRMSNorm(head_dim, eps=1e-6), LlamaRMSNorm(head_dim, eps=1e-6)
    attention.set_processor(NormedProcessor())


class TemporalAttention(nn.Module):
    """LayerNorm of PyTorch, Attention of diffusers, LlamaRMSNorm of transformers; along time, or over the clip."""

    def __init__(self, sizes, one_dimensional, to_text):
        super().__init__()
        channels, self.frames = sizes["channels"], sizes["frames"]
        self.one_dimensional, self.to_text = one_dimensional, to_text
        self.head_dim = channels // sizes["heads"]
        self.norm = nn.LayerNorm(channels)
        self.attention = Attention(
            query_dim=channels,
            cross_attention_dim=sizes["text_width"] if to_text else None,
            heads=sizes["heads"],
            dim_head=self.head_dim,
        )
        norm_queries_and_keys(self.attention)

    def forward(self, clips, text):
        _, c, h, w = clips.shape
        clip = clips.unflatten(0, (-1, self.frames)).permute(0, 3, 4, 1, 2)  # b h w t c
        b = clip.shape[0]
        if self.one_dimensional:
            tokens = clip.reshape(b * h * w, self.frames, c)
            text = text.repeat_interleave(h * w, 0)
            rotary = along_axes([torch.arange(self.frames)], [self.head_dim])
        else:
            tokens = clip.permute(0, 3, 1, 2, 4).reshape(b, -1, c)
            rotary = time_and_space(self.frames, h, w, self.head_dim)
        branch = self.attention(self.norm(tokens), text if self.to_text else None, rotary=rotary)
        if self.one_dimensional:
            branch = branch.reshape(b, h, w, self.frames, c).permute(0, 3, 4, 1, 2)
        else:
            branch = branch.reshape(b, self.frames, h, w, c).permute(0, 1, 4, 2, 3)
        return {"moved": clips + branch.reshape(clips.shape)}


def temporal_operator(sizes):
    name = sizes["operator"]
    one_dimensional = name.endswith("1d")
    if name.startswith("conv"):
        return Convolution(sizes, one_dimensional)
    return TemporalAttention(sizes, one_dimensional, to_text=name.startswith("cross"))


BUILD = {
    "unet": unet,
    "text_encoder": text_encoder,
    "clip": clip,
    "spatial_vae": spatial_vae,
    "temporal_operator": temporal_operator,
}


def build(model):
    """The peer of a case's model: `{"unet": sizes}` and the like."""
    ((kind, sizes),) = model.items()
    return BUILD[kind](sizes)
