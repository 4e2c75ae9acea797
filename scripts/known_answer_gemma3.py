#!/usr/bin/env python3
"""Greedy ids of transformers for the dequantized gemma3-270m GGUF behind "The capital of France is", with the three best of each step.

usage: scripts/known_answer_gemma3.py [MODEL.gguf]      (needs torch, transformers, gguf, numpy)

The ids that tests/parity.rs has for it come from here.
"""
import pathlib
import sys

if "--help" in sys.argv or "-h" in sys.argv:
    sys.exit(print(__doc__))
import torch, gguf, numpy as np
from gguf.quants import dequantize
from transformers import Gemma3TextConfig, Gemma3ForCausalLM
torch.set_num_threads(1)
cached = pathlib.Path.home() / ".cache/llmopt/gemma-3-270m-q4_k_m.gguf"
r = gguf.GGUFReader(sys.argv[1] if len(sys.argv) > 1 else cached)
f={k:v.contents() for k,v in r.fields.items() if k.startswith("gemma3.")}
c=Gemma3TextConfig(vocab_size=262144,hidden_size=f["gemma3.embedding_length"],intermediate_size=f["gemma3.feed_forward_length"],num_hidden_layers=f["gemma3.block_count"],num_attention_heads=f["gemma3.attention.head_count"],num_key_value_heads=f["gemma3.attention.head_count_kv"],head_dim=f["gemma3.attention.key_length"],sliding_window=f["gemma3.attention.sliding_window"],query_pre_attn_scalar=256,rms_norm_eps=f["gemma3.attention.layer_norm_rms_epsilon"],max_position_embeddings=32768,rope_parameters={"full_attention":{"rope_type":"default","rope_theta":1e6},"sliding_attention":{"rope_type":"default","rope_theta":1e4}},attn_implementation="eager")
m=Gemma3ForCausalLM(c).eval()
names={"attn_norm":"input_layernorm","post_attention_norm":"post_attention_layernorm","ffn_norm":"pre_feedforward_layernorm","post_ffw_norm":"post_feedforward_layernorm","attn_q":"self_attn.q_proj","attn_k":"self_attn.k_proj","attn_v":"self_attn.v_proj","attn_output":"self_attn.o_proj","attn_q_norm":"self_attn.q_norm","attn_k_norm":"self_attn.k_norm","ffn_gate":"mlp.gate_proj","ffn_up":"mlp.up_proj","ffn_down":"mlp.down_proj"}
sd=dict(m.named_parameters()); done=set()
with torch.no_grad():
    for t in r.tensors:
        w=torch.from_numpy(dequantize(t.data,t.tensor_type).astype(np.float32))
        p=t.name.split(".")
        if p[0]=="token_embd": n="model.embed_tokens.weight"
        elif p[0]=="output_norm": n="model.norm.weight"
        else: n=f"model.layers.{p[1]}.{names[p[2]]}.weight"
        if "norm" in n: w=w-1
        sd[n].copy_(w.reshape(sd[n].shape)); done.add(n)
    assert not set(sd) - done, set(sd) - done
    ids=[2,818,5279,529,7001,563]
    for _ in range(16):
        s=m(torch.tensor([ids]),use_cache=False).logits[0,-1]; t=torch.topk(s,3); ids.append(int(t.indices[0])); print(t.indices.tolist(),[round(x,3) for x in t.values.tolist()],flush=True)
print(ids)
