"""The operators that the code of an exported file may use.

Code in a file can write to the disk (`torch.from_file`, `torch.save`), start threads or change the state of the
process. Some of it runs while torch loads the file: default arguments and `__setstate__`. So its source is searched
before. Only operators that compute tensors from tensors are allowed: those of the decision and of the encoders.
"""

import re
from functools import cache

import torch

# Any spelling of an operator contains its name as a word, also `x.save(...)` and `getattr(torch, "save")`.
_WORD = re.compile(rb"\w+")
_STRING = re.compile(rb'"((?:[^"\\\n]|\\.)*)"')
_GETATTR = re.compile(rb'\bgetattr\([\w.]+, "\w+"\)')
# TorchScript writes neither comments nor other quotes. With these, a string could end elsewhere than it does here.
_UNUSUAL = re.compile(rb"[\"'#\\]")
_NAMESPACE = re.compile(rb"(?<!\.)\bops\b(?!\.(?:prim|aten)\.\w)")
_CLASSES = re.compile(rb"\btorch\W*classes\b")  # classes of C++, which can act
_FORMS = {"print", "fork", "awaitable", "__setstate__", "__getstate__"}  # these act, too, but are no operators

_ALLOWED = frozenset(
    """
    RaiseException Uninitialized TupleIndex TupleUnpack NumToTensor Int Float Bool IntImplicit FloatImplicit
    ScalarImplicit unchecked_cast unchecked_unwrap_optional _unwrap_optional annotate is_scripting isinstance range
    rangelist __derive_index __range_length __contains__ __getitem__ __is__ __isnot__ __not__ __and__ __or__ __xor__
    __lshift__ __rshift__ list dict tuple append extend insert pop clear copy keys values items get len sorted reverse
    _set_item index count str format join split strip lower upper replace find startswith endswith
    name type title data warn

    device dtype layout size dim numel stride storage_offset shape is_contiguous is_cuda is_floating_point is_complex
    requires_grad item tensor as_tensor to cpu type_as contiguous clone detach alias float_power can_cast result_type
    zeros zeros_like ones ones_like full full_like empty empty_like new_empty new_full new_ones new_zeros arange eye
    linspace scalar_tensor fill_ zero_ copy_ lift_fresh _to_copy promote_types

    abs abs_ add add_ addcdiv addcmul addmm all allclose amax amin aminmax any argmax argmin argsort argwhere baddbmm
    bitwise_and bitwise_not bitwise_or bitwise_xor bmm bucketize ceil ceil_ clamp clamp_ clamp_max clamp_max_ clamp_min
    clamp_min_ clip clip_ cos cosh count_nonzero cummax cummin cumprod cumsum cumsum_ diff div div_ divide divmod dot
    einsum eq equal erf exp exp_ expm1 floor floor_ floor_divide floordiv fmod frac gcd ge greater greater_equal gt
    inner isclose isfinite isin isinf isnan kthvalue le lerp less less_equal linalg_norm linalg_vector_norm log log10
    log1p log2 log_ logaddexp logical_and logical_not logical_or logical_xor logit logsumexp lt matmul max maximum mean
    median min minimum mm mode mul mul_ multiply mv nan_to_num nansum ne neg neg_ negative norm not_equal outer positive
    pow pow_ prod quantile real reciprocal reciprocal_ remainder round round_ rsqrt rsqrt_ rsub sign sin sinh sort
    special_expit sqrt sqrt_ square square_ std std_mean sub sub_ subtract sum sum_to_size tan tanh tanh_ topk
    true_divide trunc var var_mean

    bincount broadcast_tensors broadcast_to cat chunk column_stack concat concatenate constant_pad_nd diag diagonal
    dstack expand expand_as flatten flip fliplr flipud gather hstack index_add index_add_ index_copy index_fill
    index_put index_put_ index_select masked_fill masked_fill_ masked_select meshgrid moveaxis movedim narrow nonzero
    one_hot pad permute pixel_shuffle pixel_unshuffle ravel repeat repeat_interleave reshape reshape_as roll rot90
    scatter scatter_ scatter_add scatter_add_ scatter_reduce scatter_reduce_ searchsorted select slice split_with_sizes
    squeeze squeeze_ stack swapaxes swapdims t take take_along_dim tensor_split tile transpose transpose_ tril triu
    unbind unflatten unfold unique_consecutive unsqueeze unsqueeze_ view view_as vstack where zero

    _convolution _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_lanczos2d_aa _upsample_nearest_exact1d
    _upsample_nearest_exact2d _upsample_nearest_exact3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d alpha_dropout avg_pool1d avg_pool2d batch_norm bilinear celu celu_
    channel_shuffle conv1d conv2d conv3d conv_transpose1d conv_transpose2d convolution cosine_similarity dropout
    dropout_ elu elu_ embedding feature_alpha_dropout feature_dropout feature_dropout_ gelu gelu_ glu grid_sampler
    group_norm hardsigmoid hardsigmoid_ hardswish hardswish_ hardtanh hardtanh_ im2col col2im instance_norm layer_norm
    leaky_relu leaky_relu_ linear log_sigmoid log_softmax max_pool1d max_pool2d max_pool2d_with_indices max_unpool2d
    mish mish_ native_batch_norm native_dropout native_group_norm native_layer_norm prelu reflection_pad1d
    reflection_pad2d relu relu6 relu6_ relu_ replication_pad1d replication_pad2d rms_norm rrelu
    scaled_dot_product_attention selu selu_ sigmoid sigmoid_ silu silu_ softmax softplus softshrink threshold
    threshold_ upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d upsample_trilinear3d bernoulli bernoulli_ rand rand_like randn randn_like uniform_ normal_ random
    center gamma degrees partition
    """.split()  # noqa: SIM905, a list of literals would take 400 lines
)


def find_forbidden(code: bytes) -> str:
    """Return the first part of TorchScript source that is not allowed, such as the name of an operator, or ""."""
    if b'"""' in code or len(_GETATTR.findall(code)) < code.count(b"getattr"):
        return "in an unusual spelling"
    # A message may contain the name of any operator. A single word may be one, as in getattr.
    code = _STRING.sub(lambda match: b" %b " % (match[1] if _WORD.fullmatch(match[1]) else b""), code)
    for pattern in (_UNUSUAL, _NAMESPACE, _CLASSES):
        if found := pattern.search(code):
            return code[found.start() :][:40].split(b"\n")[0].decode(errors="backslashreplace")
    words = {word.decode() for word in _WORD.findall(code)}
    return min(words & _forbidden_words(), default="")


@cache
def _forbidden_words() -> frozenset[str]:
    operators = (schema.name.split("::") for schema in torch._C._jit_get_all_schemas())
    known = {name for namespace, name in operators if namespace in ("aten", "prim")}
    return frozenset((known | _FORMS) - _ALLOWED)
