"`import detnb.as_mmdet`: every name of the list is detnb's, old scripts and the classic tutorial run, what is missing says so"
import copy, importlib, json, os, subprocess, sys, textwrap, types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detnb.datasets.shapes import make_shapes
from detnb.foundation.checkpoint import CheckpointError, read_checkpoint
from detnb.foundation.environment import data_root
from fresh_process import run, run_notebook, run_script
from test_cli import CONFIG

root = Path(__file__).resolve().parent.parent
KITTI = data_root() and data_root()/'kitti_tiny'

# old module | name:the module of detnb that defines it (constants: what they are)
NAMES = '''
mmcv | Config:foundation.config mkdir_or_exist:foundation.files DictAction:foundation.config_options dump:foundation.files load:foundation.files
mmcv | imread:foundation.images ProgressBar:training.progress_bar list_from_file:foundation.files __version__:str bgr2rgb:foundation.images
mmcv | VideoReader:foundation.video track_iter_progress:training.progress_bar imresize:foundation.resize imfrombytes:foundation.images
mmcv | imwrite:foundation.images is_list_of:foundation.kinds is_str:foundation.kinds is_tuple_of:foundation.kinds FileClient:foundation.file_client
mmcv | imshow:drawing.window symlink:foundation.file_client track_parallel_progress:training.progress_bar check_file_exist:foundation.files
mmcv | imrescale:foundation.resize imnormalize:foundation.resize impad:foundation.resize imflip:foundation.resize scandir:foundation.files
mmcv | ConfigDict:foundation.config_dict build_from_cfg:foundation.registry print_log:foundation.logging Registry:foundation.registry
mmcv | get_logger:foundation.logging track_progress:training.progress_bar rgb2bgr:foundation.images imcrop:foundation.images bgr2gray:foundation.images
mmcv | impad_to_multiple:foundation.resize imdenormalize:foundation.resize
mmcv.runner | load_checkpoint:foundation.checkpoint get_dist_info:foundation.distributed init_dist:foundation.distributed
mmcv.runner | EpochBasedRunner:training.loops wrap_fp16_model:layers.precision HOOKS:foundation.registry force_fp32:layers.precision
mmcv.runner | auto_fp16:layers.precision build_optimizer:training.optimizer OptimizerHook:training.optimizer_step BaseModule:layers.module
mmcv.runner | ModuleList:layers.module Sequential:layers.module DistSamplerSeedHook:training.checks build_runner:training.loops
mmcv.runner | Fp16OptimizerHook:training.optimizer_step get_state_dict:foundation.checkpoint weights_to_cpu:foundation.checkpoint
mmcv.runner | RUNNERS:foundation.registry DefaultOptimizerConstructor:training.optimizer obj_from_dict:foundation.from_module Hook:training.hooks
mmcv.runner | OPTIMIZER_BUILDERS:foundation.registry OPTIMIZERS:foundation.registry save_checkpoint:foundation.checkpoint
mmcv.runner | IterBasedRunner:training.loops BaseRunner:training.runner CheckpointHook:training.checkpoints EvalHook:training.evaluation
mmcv.runner | load_state_dict:foundation.checkpoint get_priority:training.hooks LrUpdaterHook:training.schedule_hooks TextLoggerHook:training.logs
mmcv.parallel | MMDataParallel:apis.parallel MMDistributedDataParallel:apis.train is_module_wrapper:foundation.distributed
mmcv.parallel | DataContainer:structures.data_container collate:apis.parallel scatter:apis.parallel
mmcv.cnn | ConvModule:layers.conv_module fuse_conv_bn:layers.fold build_conv_layer:layers.build normal_init:layers.initialize
mmcv.cnn | build_norm_layer:layers.build bias_init_with_prob:layers.initialize constant_init:layers.initialize kaiming_init:layers.initialize
mmcv.cnn | build_activation_layer:layers.build Scale:layers.conv_module get_model_complexity_info:apis.model_complexity xavier_init:layers.initialize
mmcv.cnn | build_plugin_layer:layers.build build_upsample_layer:layers.build MODELS:foundation.registry trunc_normal_init:layers.initialize
mmcv.cnn | DepthwiseSeparableConvModule:layers.conv_module Linear:torch.nn.modules.linear CONV_LAYERS:foundation.registry
mmcv.cnn | NORM_LAYERS:foundation.registry ACTIVATION_LAYERS:foundation.registry PLUGIN_LAYERS:foundation.registry caffe2_xavier_init:layers.initialize
mmcv.cnn | initialize:layers.initialize
mmcv.cnn.bricks.transformer | build_transformer_layer:layers.transformer build_transformer_layer_sequence:layers.transformer
mmcv.cnn.bricks.transformer | build_attention:layers.transformer build_feedforward_network:layers.transformer
mmcv.cnn.bricks.transformer | build_positional_encoding:layers.transformer FFN:layers.transformer MultiheadAttention:layers.transformer
mmcv.cnn.bricks.transformer | BaseTransformerLayer:layers.transformer TransformerLayerSequence:layers.transformer ATTENTION:foundation.registry
mmcv.cnn.bricks.transformer | TRANSFORMER_LAYER:foundation.registry TRANSFORMER_LAYER_SEQUENCE:foundation.registry
mmcv.cnn.bricks.transformer | POSITIONAL_ENCODING:foundation.registry FEEDFORWARD_NETWORK:foundation.registry
mmcv.utils | get_git_hash:foundation.environment build_from_cfg:foundation.registry ConfigDict:foundation.config_dict print_log:foundation.logging
mmcv.utils | import_modules_from_strings:foundation.config Registry:foundation.registry get_logger:foundation.logging to_2tuple:foundation.kinds
mmcv.utils | digit_version:foundation.kinds is_seq_of:foundation.kinds is_list_of:foundation.kinds
mmcv.ops | get_compiling_cuda_version:foundation.compilers get_compiler_version:foundation.compilers nms:ops.nms RoIPool:ops.roi_align
mmcv.ops | RoIAlign:ops.roi_align batched_nms:ops.batched_nms soft_nms:ops.soft_nms roi_align:ops.roi_align sigmoid_focal_loss:ops.focal
mmcv.ops | DeformConv2d:layers.deformable ModulatedDeformConv2d:layers.deformable MultiScaleDeformableAttention:layers.scale_attention
mmcv.ops | point_sample:ops.point_sample DeformConv2dPack:layers.deformable nms_match:ops.nms_match
mmcv.ops.multi_scale_deform_attn | MultiScaleDeformableAttention:layers.scale_attention multi_scale_deformable_attn_pytorch:ops.scale_attention
mmdet | __version__:str version_info:tuple
mmdet.apis | train_detector:apis.train single_gpu_test:apis.test set_random_seed:training.seeds init_detector:apis.inference
mmdet.apis | inference_detector:apis.inference multi_gpu_test:apis.test show_result_pyplot:apis.inference async_inference_detector:apis.asynchronous
mmdet.apis | init_random_seed:training.seeds get_root_logger:foundation.logging
mmdet.models | build_detector:models.builder BACKBONES:foundation.registry HEADS:foundation.registry NECKS:foundation.registry
mmdet.models | DETECTORS:foundation.registry LOSSES:foundation.registry SHARED_HEADS:foundation.registry ROI_EXTRACTORS:foundation.registry
mmdet.models | build_loss:models.builder build_backbone:models.builder build_neck:models.builder build_head:models.builder
mmdet.models | build_roi_extractor:models.builder build_shared_head:models.builder
mmdet.models.builder | BACKBONES:foundation.registry HEADS:foundation.registry NECKS:foundation.registry DETECTORS:foundation.registry
mmdet.models.builder | LOSSES:foundation.registry SHARED_HEADS:foundation.registry ROI_EXTRACTORS:foundation.registry build_loss:models.builder
mmdet.models.builder | build_backbone:models.builder build_neck:models.builder build_head:models.builder MODELS:foundation.registry
mmdet.models.backbones.resnet | Bottleneck:models.backbones.residual BasicBlock:models.backbones.residual ResNet:models.backbones.resnet
mmdet.models.backbones.resnet | ResNetV1d:models.backbones.resnet
mmdet.models.backbones | ResNet:models.backbones.resnet
mmdet.models.losses | accuracy:models.losses.accuracy weight_reduce_loss:models.losses.weighting weighted_loss:models.losses.weighting
mmdet.models.losses | FocalLoss:models.losses.focal_loss CrossEntropyLoss:models.losses.cross_entropy L1Loss:models.losses.smooth_l1
mmdet.models.losses | SmoothL1Loss:models.losses.smooth_l1 GIoULoss:models.losses.iou_loss
mmdet.models.losses.accuracy | accuracy:models.losses.accuracy
mmdet.models.losses.utils | weight_reduce_loss:models.losses.weighting weighted_loss:models.losses.weighting
mmdet.models.utils | build_transformer:layers.transformer ResLayer:layers.blocks gaussian_radius:models.targets.gaussian_targets
mmdet.models.utils | gen_gaussian_target:models.targets.gaussian_targets
mmdet.models.utils.builder | TRANSFORMER:foundation.registry build_transformer:layers.transformer
mmdet.models.detectors | BaseDetector:models.detectors.base SingleStageDetector:models.detectors.single_stage
mmdet.models.detectors | TwoStageDetector:models.detectors.two_stage FasterRCNN:models.detectors.two_stage MaskRCNN:models.detectors.two_stage
mmdet.models.detectors.base | BaseDetector:models.detectors.base
mmdet.models.dense_heads | AnchorHead:models.dense_heads.anchor_head RPNHead:models.dense_heads.rpn_head RetinaHead:models.dense_heads.retina_head
mmdet.models.dense_heads | AnchorFreeHead:models.dense_heads.anchor_free_head FCOSHead:models.dense_heads.fcos_head
mmdet.models.dense_heads.base_dense_head | BaseDenseHead:models.dense_heads.base_dense_head
mmdet.models.roi_heads | StandardRoIHead:models.roi_heads.standard_roi_head CascadeRoIHead:models.roi_heads.cascade_roi_head
mmdet.models.roi_heads | BBoxHead:models.roi_heads.bbox_head Shared2FCBBoxHead:models.roi_heads.convfc_bbox_head
mmdet.models.roi_heads | FCNMaskHead:models.roi_heads.fcn_mask_head SingleRoIExtractor:models.roi_heads.single_level_extractor
mmdet.models.roi_heads | ConvFCBBoxHead:models.roi_heads.convfc_bbox_head
mmdet.models.necks | FPN:models.necks.fpn
mmdet.models.necks.fpn | FPN:models.necks.fpn
mmdet.datasets | build_dataset:datasets.builder build_dataloader:apis.parallel replace_ImageToTensor:datasets.transforms.formatting
mmdet.datasets | PIPELINES:foundation.registry DATASETS:foundation.registry CustomDataset:datasets.custom CocoDataset:datasets.coco
mmdet.datasets | ConcatDataset:datasets.wrappers RepeatDataset:datasets.wrappers ClassBalancedDataset:datasets.wrappers GroupSampler:datasets.samplers
mmdet.datasets | VOCDataset:datasets.voc XMLDataset:datasets.voc DistributedGroupSampler:datasets.samplers
mmdet.datasets.builder | PIPELINES:foundation.registry DATASETS:foundation.registry build_dataset:datasets.builder build_dataloader:apis.parallel
mmdet.datasets.custom | CustomDataset:datasets.custom
mmdet.datasets.coco | CocoDataset:datasets.coco
mmdet.datasets.pipelines | Compose:datasets.transforms.compose to_tensor:datasets.transforms.formatting LoadImageFromFile:datasets.transforms.loading
mmdet.datasets.pipelines | LoadAnnotations:datasets.transforms.loading Resize:datasets.transforms.resize RandomFlip:datasets.transforms.flip
mmdet.datasets.pipelines | Normalize:datasets.transforms.pad_normalize Pad:datasets.transforms.pad_normalize
mmdet.datasets.pipelines | DefaultFormatBundle:datasets.transforms.formatting Collect:datasets.transforms.formatting
mmdet.datasets.pipelines | MultiScaleFlipAug:datasets.transforms.views RandomCrop:datasets.transforms.crop
mmdet.datasets.pipelines | PhotoMetricDistortion:datasets.transforms.photometric ImageToTensor:datasets.transforms.formatting
mmdet.datasets.pipelines.compose | Compose:datasets.transforms.compose
mmdet.datasets.pipelines.formating | to_tensor:datasets.transforms.formatting
mmdet.datasets.api_wrappers | COCO:evaluation.coco COCOeval:pycocotools.cocoeval
mmdet.datasets.samplers | GroupSampler:datasets.samplers DistributedGroupSampler:datasets.samplers DistributedSampler:datasets.samplers
mmdet.core | BitmapMasks:structures.masks PolygonMasks:structures.polygons multi_apply:models.targets.per_image bbox_overlaps:structures.overlaps
mmdet.core | bbox2result:structures.boxes EvalHook:training.evaluation DistEvalHook:training.evaluation build_assigner:models.targets.builder
mmdet.core | build_sampler:models.targets.builder bbox2roi:structures.boxes reduce_mean:foundation.distributed
mmdet.core | images_to_levels:models.targets.per_image AssignResult:models.targets.assigners imshow_det_bboxes:drawing.detections
mmdet.core | eval_map:evaluation.mean_ap eval_recalls:evaluation.recall encode_mask_results:apis.test bbox_xyxy_to_cxcywh:structures.boxes
mmdet.core | bbox_cxcywh_to_xyxy:structures.boxes multiclass_nms:ops.batched_nms build_bbox_coder:models.targets.builder
mmdet.core | build_prior_generator:models.targets.builder build_anchor_generator:models.targets.builder distance2bbox:structures.boxes
mmdet.core | bbox2distance:structures.boxes get_classes:evaluation.class_names unmap:models.targets.per_image SamplingResult:models.targets.samplers
mmdet.core | anchor_inside_flags:models.targets.per_image mask_target:models.targets.mask_targets mask2bbox:models.targets.per_image
mmdet.core | select_single_mlvl:models.targets.per_image filter_scores_and_topk:models.targets.per_image
mmdet.core.utils | flip_tensor:models.targets.per_image center_of_mass:models.targets.per_image
mmdet.core.mask.utils | mask2bbox:models.targets.per_image
mmdet.core.bbox | bbox_overlaps:structures.overlaps build_assigner:models.targets.builder build_sampler:models.targets.builder
mmdet.core.bbox | AssignResult:models.targets.assigners bbox2roi:structures.boxes
mmdet.core.bbox.builder | build_bbox_coder:models.targets.builder BBOX_ASSIGNERS:foundation.registry BBOX_CODERS:foundation.registry
mmdet.core.bbox.builder | BBOX_SAMPLERS:foundation.registry
mmdet.core.bbox.assigners | MaxIoUAssigner:models.targets.assigners BaseAssigner:models.targets.assigners AssignResult:models.targets.assigners
mmdet.core.bbox.iou_calculators | bbox_overlaps:structures.overlaps build_iou_calculator:models.targets.builder
mmdet.core.mask | BitmapMasks:structures.masks PolygonMasks:structures.polygons encode_mask_results:apis.test
mmdet.core.mask.structures | BitmapMasks:structures.masks PolygonMasks:structures.polygons
mmdet.core.evaluation | eval_map:evaluation.mean_ap eval_recalls:evaluation.recall get_classes:evaluation.class_names EvalHook:training.evaluation
mmdet.core.evaluation | DistEvalHook:training.evaluation
mmdet.core.utils | multi_apply:models.targets.per_image reduce_mean:foundation.distributed unmap:models.targets.per_image
mmdet.core.visualization | imshow_det_bboxes:drawing.detections imshow_gt_det_bboxes:drawing.detections get_palette:drawing.palette
mmdet.core.visualization | palette_val:drawing.palette
mmdet.core.anchor | AnchorGenerator:models.targets.anchors build_anchor_generator:models.targets.builder images_to_levels:models.targets.per_image
mmdet.utils | get_root_logger:foundation.logging collect_env:foundation.environment setup_multi_processes:foundation.environment
mmdet.utils | update_data_root:foundation.config_roots replace_cfg_vals:foundation.config_roots get_device:foundation.environment
mmdet.utils | compat_cfg:foundation.config_roots build_dp:apis.parallel build_ddp:apis.parallel rfnext_init_model:apis.parallel
mmdet.utils | find_latest_checkpoint:training.state
'''.strip()
ROWS = [(row.split(' | ')[0], *item.split(':')) for row in NAMES.splitlines() for item in row.split(' | ')[1].split()]


@pytest.fixture(scope='module', autouse=True)
def old_names():
    "The finder, for the tests of this file alone"
    import detnb.as_mmdet as page
    page.install()
    yield page
    sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != 'OldNames']
    for name in [n for n in sys.modules if n.split('.')[0] in ('mmdet', 'mmcv')]: del sys.modules[name]


@pytest.mark.parametrize('module', sorted({row[0] for row in ROWS}))
def test_names(module):
    for _, name, home in (row for row in ROWS if row[0] == module):
        got = {}
        exec(f'from {module} import {name}', got)
        where = getattr(got[name], '__module__', type(got[name]).__name__)
        assert where.removeprefix('detnb.') == home, f'{module}.{name} is {got[name]!r} of {where}'
        if where.startswith('detnb.') and hasattr(sys.modules[where], name): assert getattr(sys.modules[where], name) is got[name]


def test_registries_are_those_of_detnb():
    from detnb import datasets, layers, models, training
    from mmcv.cnn import CONV_LAYERS
    from mmcv.runner import HOOKS, OPTIMIZERS, RUNNERS
    from mmdet.datasets import DATASETS, PIPELINES
    from mmdet.models import BACKBONES, DETECTORS, HEADS, LOSSES, NECKS
    assert (DATASETS, PIPELINES) == (datasets.DATASETS, datasets.PIPELINES) and CONV_LAYERS is layers.CONV_LAYERS
    assert (HOOKS, RUNNERS, OPTIMIZERS) == (training.HOOKS, training.RUNNERS, training.OPTIMIZERS)
    assert all(r is models.MODELS for r in (BACKBONES, DETECTORS, HEADS, LOSSES, NECKS)) and BACKBONES.get('ResNet') is models.BACKBONES.get('ResNet')


def test_every_old_module_can_be_imported(old_names):
    for name in old_names.PLACES: assert type(importlib.import_module(name)).__name__ == 'OldModule', name
    import mmcv.ops.nms, mmcv.parallel.collate, mmdet.core.evaluation.bbox_overlaps, mmdet.utils.collect_env
    for module, name in ((mmcv.ops, 'nms'), (mmcv.parallel, 'collate'), (mmdet.utils, 'collect_env')):
        assert isinstance(getattr(module, name), types.FunctionType), f'{name} is still a function after its module was imported'


def test_versions_compare_as_old_code_compares_them():
    import mmcv, mmdet
    from mmcv.utils import digit_version
    assert digit_version('1.3.17') <= digit_version(mmcv.__version__) < digit_version('1.8.0')
    assert mmdet.__version__.startswith('2.28') and mmdet.version_info[:2] == (2, 28) and mmcv.version_info[0] == 1
    assert (Path(mmdet.__path__[0])/'configs').is_dir() and Path(mmdet.__file__).is_file()


@pytest.mark.parametrize('line,kind,words', [
    ('from mmdet.core import bbox_overlap', ImportError, "mmdet.core.bbox_overlap is not in detnb; did you mean 'bbox_overlaps'"),
    ('from mmcv import load_chekpoint', ImportError, "'load_checkpoint'"), ('from mmcv import DataContainer', ImportError, 'mmcv.parallel.DataContainer is'),
    ('from mmdet.core.data_structures import InstanceData', ImportError, 'detnb.structures.as_result'),
    ('from mmdet.core import mask_matrix_nms', ImportError, 'multiclass_nms'), ('from mmdet.core import merge_aug_masks', ImportError, 'aug_test'),
    ('from mmdet.core import build_detector', ImportError, 'mmdet.models.build_detector is'),
    ('import mmcv; mmcv.imreed', AttributeError, "'imread'"), ('import mmdet.core.export', ImportError, 'export-onnx'),
    ('from mmdet.models.necks import augfpn', ImportError, "'AugFPN'"), ('from mmdet.registry import MODELS', ImportError, 'MMDetection 3'),
    ('import mmdet.models.neck', ImportError, "'necks'"), ('from mmcv.cnn.brick import ConvModule', ImportError, "'bricks'"),
    ('import mmcv; mmcv.use_backend("turbojpeg")', AttributeError, 'delete the line')])
def test_what_is_missing_says_so(line, kind, words):
    with pytest.raises(kind) as e: exec(line, {})
    assert words in str(e.value)


def test_hasattr_and_star():
    import mmcv, mmdet.core
    assert hasattr(mmcv, 'imread') and not hasattr(mmcv, 'imreed') and 'imread' in dir(mmcv)
    names = {}
    exec('from mmdet.core import *', names)
    assert {'bbox_overlaps', 'BitmapMasks', 'multi_apply'} <= set(names) and not [n for n, v in names.items() if isinstance(v, types.ModuleType) and n != '__builtins__']


def fresh(code, cwd, *argv, fails=False):
    "Run a script in a process that knows nothing yet -> what it printed"
    path = Path(cwd)/'script.py'
    path.write_text(textwrap.dedent(code))
    good, said = run(run_script, path, cwd, [*map(str, argv)], root, timeout=900)
    assert good != fails, said[-6000:]
    return said


def test_a_real_mmdet_beside_it(tmp_path):
    "Passed over with a warning where it only lies there, an error where it was imported before"
    (tmp_path/'mmdet').mkdir(); (tmp_path/'mmdet'/'__init__.py').write_text("__version__ = '2.25.0'")
    said = fresh('import detnb.as_mmdet, mmdet; print(mmdet.__version__)', tmp_path)
    assert '2.28.2' in said and 'mmdet is here too' in said
    said = fresh('import mmdet, detnb.as_mmdet', tmp_path, fails=True)
    assert 'ImportError: mmdet was imported before' in said and 'above all other imports' in said
    assert 'warn' not in fresh('import detnb.as_mmdet, detnb.as_mmdet, mmcv', tmp_path/'..').lower()


def test_old_pickles_are_still_refused(tmp_path):
    "That a name resolves does not make it safe to call"
    class Reduced:
        def __reduce__(self): return importlib.import_module('mmcv').mkdir_or_exist, (str(tmp_path/'made'),)
    torch.save(dict(state_dict={}, extra=Reduced()), tmp_path/'a.pth')
    with pytest.raises(CheckpointError, match='not executed'): read_checkpoint(tmp_path/'a.pth')
    assert not (tmp_path/'made').exists()


def test_custom_imports_find_a_module_of_old_imports(tmp_path, monkeypatch):
    (tmp_path/'old_neck.py').write_text('from mmcv.runner import BaseModule\nfrom mmdet.models.builder import NECKS\n'
                                        '@NECKS.register_module()\nclass OldNeck(BaseModule):\n    def forward(self, x): return x\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    from mmcv import Config
    from mmdet.models import build_neck
    Config.fromstring("custom_imports = dict(imports=['old_neck'], allow_failed_imports=False)", '.py')
    (tmp_path/'c.py').write_text("custom_imports = dict(imports=['old_neck'], allow_failed_imports=False)")
    Config.fromfile(str(tmp_path/'c.py'))
    assert build_neck(dict(type='OldNeck')).init_cfg is None


# What was built for the names: figures that stand outside of their notebooks

def test_point_sample_against_single_pixels():
    from mmcv.ops import point_sample
    x = torch.rand(2, 3, 4, 5)
    centres = torch.stack(torch.meshgrid((torch.arange(4) + .5) / 4, (torch.arange(5) + .5) / 5, indexing='ij')[::-1], -1)
    assert torch.allclose(point_sample(x, centres.expand(2, -1, -1, -1)), x, atol=1e-6)
    assert torch.allclose(point_sample(x, torch.tensor([[[.2, .25]]]).expand(2, 1, 2))[..., 0], x[:, :, :2, :2].mean((2, 3)), atol=1e-6)


def test_transformer_from_old_config():
    from mmcv.cnn.bricks.transformer import build_transformer_layer_sequence
    from mmdet.models.utils import build_transformer
    from mmdet.models.utils.builder import TRANSFORMER
    layer = dict(type='BaseTransformerLayer', feedforward_channels=16, ffn_dropout=.1, operation_order=('self_attn', 'norm', 'cross_attn', 'norm', 'ffn', 'norm'),
                 attn_cfgs=[dict(type='MultiheadAttention', embed_dims=8, num_heads=2, dropout=.1), dict(type='MultiScaleDeformableAttention', embed_dims=8, num_levels=1)])
    @TRANSFORMER.register_module(force=True)
    class Pair(nn.Module):
        def __init__(self, decoder): super().__init__(); self.decoder = build_transformer_layer_sequence(decoder)
    model = build_transformer(dict(type='Pair', decoder=dict(type='TransformerLayerSequence', transformerlayers=layer, num_layers=2))).eval()
    query, memory = torch.rand(5, 2, 8), torch.rand(12, 2, 8)
    out = model.decoder(query, None, memory, query_pos=torch.rand(5, 2, 8), reference_points=torch.rand(2, 5, 1, 2), spatial_shapes=torch.tensor([[3, 4]]))
    assert out.shape == query.shape and model.decoder.layers[0].ffns[0].layers[0][0].out_features == 16
    names = set(model.state_dict())
    assert {'decoder.layers.1.attentions.0.attn.in_proj_weight', 'decoder.layers.0.attentions.1.sampling_offsets.bias', 'decoder.layers.0.norms.2.weight',
            'decoder.layers.0.ffns.0.layers.1.weight', 'decoder.layers.0.ffns.0.layers.0.0.bias'} <= names
    TRANSFORMER._module_dict.pop('Pair')


def test_batches_in_containers():
    from mmcv.parallel import DataContainer as DC, MMDataParallel, collate, scatter
    from mmdet.datasets import build_dataloader
    class Marked:
        flag = np.zeros(4)
        def __len__(self): return 4
        def __getitem__(self, i): return dict(img=DC(torch.full((3, 4 + i, 4), float(i)), stack=True), gt_bboxes=DC(torch.zeros(i, 4)), img_metas=DC(dict(i=i), cpu_only=True))
    batches = list(build_dataloader(Marked(), 2, 0, dist=False, shuffle=False))
    assert [b['img'].shape for b in batches] == [(2, 3, 5, 4), (2, 3, 7, 4)] and [len(g) for g in batches[1]['gt_bboxes']] == [2, 3] and batches[1]['img_metas'][1] == dict(i=3)
    for workers in (0, 1):                              # used as they are above, opened here
        first, second = build_dataloader(Marked(), 2, workers, dist=False, shuffle=False)
        assert first['img'].data[0].shape == (2, 3, 5, 4) and torch.equal(first['img'].data[0], first['img'] * 1)
        assert type(first['img'].data[0]) is type(first['img'] * 1) is type(copy.deepcopy(first['img'] * 1)) is torch.Tensor
        assert [len(g) for g in second['gt_bboxes'].data[0]] == [2, 3] and second['img_metas'].data[0] == list(second['img_metas']) == [dict(i=2), dict(i=3)]
        assert isinstance(repr(first['img']), str) and torch.equal(copy.deepcopy(first['img']), first['img'])
    old = collate([Marked()[1], Marked()[2]], samples_per_gpu=2)
    assert old['img'].data[0].shape == (2, 3, 6, 4) and old['img_metas'].data[0][1] == dict(i=2)
    class Sum(nn.Module):
        def forward(self, img, img_metas, **kw): return img.sum().item(), [m['i'] for m in img_metas]
    assert MMDataParallel(Sum())(**second) == (3 * 4 * (2 * 6 + 3 * 7), [2, 3])
    assert MMDataParallel(Sum(), device_ids=[0])(**old) == MMDataParallel(Sum())(**scatter(old, [-1])[0]) == (3 * 4 * (5 + 2 * 6), [1, 2])


# Scripts against the 2.28 API, as public repositories have them, each in a process of its own

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp('old')
    for seed, (name, n) in enumerate((('train', 8), ('val', 3))): make_shapes(folder, n, (96, 64), seed=seed, name=name)
    (folder/'tiny.py').write_text(CONFIG.format(root=str(folder)))
    return folder


TRAIN = '''
import detnb.as_mmdet
import argparse, copy, os, os.path as osp, time, warnings
import mmcv
import torch
import torch.distributed as dist
from mmcv import Config, DictAction
from mmcv.runner import get_dist_info, init_dist
from mmcv.utils import get_git_hash
from mmdet import __version__
from mmdet.apis import init_random_seed, set_random_seed, train_detector
from mmdet.datasets import build_dataset
from mmdet.models import build_detector
from mmdet.utils import (collect_env, get_device, get_root_logger, replace_cfg_vals, rfnext_init_model, setup_multi_processes,
                         update_data_root)

parser = argparse.ArgumentParser()
parser.add_argument('config')
parser.add_argument('--work-dir')
parser.add_argument('--seed', type=int)
parser.add_argument('--no-validate', action='store_true')
parser.add_argument('--cfg-options', nargs='+', action=DictAction)
parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
args = parser.parse_args()

cfg = replace_cfg_vals(Config.fromfile(args.config))
update_data_root(cfg)
if args.cfg_options is not None: cfg.merge_from_dict(args.cfg_options)
setup_multi_processes(cfg)
if cfg.get('cudnn_benchmark', False): torch.backends.cudnn.benchmark = True
cfg.work_dir = args.work_dir or osp.join('./work_dirs', osp.splitext(osp.basename(args.config))[0])
cfg.gpu_ids = [0]
distributed = args.launcher != 'none'
if distributed:
    init_dist(args.launcher, **cfg.dist_params)
    _, world_size = get_dist_info()
    cfg.gpu_ids = range(world_size)
mmcv.mkdir_or_exist(osp.abspath(cfg.work_dir))
cfg.dump(osp.join(cfg.work_dir, osp.basename(args.config)))
timestamp = time.strftime('%Y%m%d_%H%M%S', time.localtime())
logger = get_root_logger(log_file=osp.join(cfg.work_dir, f'{timestamp}.log'), log_level=cfg.log_level)
meta = dict(env_info='\\n'.join(f'{k}: {v}' for k, v in collect_env().items()), config=cfg.pretty_text)
logger.info(f'Distributed training: {distributed}')
cfg.device = get_device()
seed = init_random_seed(args.seed, device=cfg.device)
set_random_seed(seed, deterministic=False)
cfg.seed = meta['seed'] = seed
meta['exp_name'] = osp.basename(args.config)
model = build_detector(cfg.model, train_cfg=cfg.get('train_cfg'), test_cfg=cfg.get('test_cfg'))
model.init_weights()
rfnext_init_model(model, cfg=cfg)
datasets = [build_dataset(cfg.data.train)]
if len(cfg.workflow) == 2:
    val_dataset = copy.deepcopy(cfg.data.val)
    val_dataset.pipeline = cfg.data.train.get('pipeline')
    datasets.append(build_dataset(val_dataset))
if cfg.checkpoint_config is not None:
    cfg.checkpoint_config.meta = dict(mmdet_version=__version__ + get_git_hash()[:7], CLASSES=datasets[0].CLASSES)
model.CLASSES = datasets[0].CLASSES
train_detector(model, datasets, cfg, distributed=distributed, validate=(not args.no_validate), timestamp=timestamp, meta=meta)
'''

TEST = '''
import argparse, os.path as osp, time
import mmcv
import torch
from mmcv import Config, DictAction
from mmcv.cnn import fuse_conv_bn
from mmcv.parallel import MMDataParallel, MMDistributedDataParallel
from mmcv.runner import get_dist_info, init_dist, load_checkpoint, wrap_fp16_model
from mmdet.apis import multi_gpu_test, single_gpu_test
from mmdet.datasets import build_dataloader, build_dataset, replace_ImageToTensor
from mmdet.models import build_detector
from mmdet.utils import build_ddp, build_dp, compat_cfg, get_device, setup_multi_processes

parser = argparse.ArgumentParser()
parser.add_argument('config')
parser.add_argument('checkpoint')
parser.add_argument('--out')
parser.add_argument('--eval', nargs='+')
parser.add_argument('--show-dir')
parser.add_argument('--fuse-conv-bn', action='store_true')
parser.add_argument('--eval-options', nargs='+', action=DictAction)
args = parser.parse_args()

cfg = compat_cfg(Config.fromfile(args.config))
setup_multi_processes(cfg)
cfg.model.pretrained = None
cfg.data.test.test_mode = True
test_loader_cfg = {**dict(samples_per_gpu=1, workers_per_gpu=2, dist=False, shuffle=False), **cfg.data.get('test_dataloader', {})}
if test_loader_cfg['samples_per_gpu'] > 1: cfg.data.test.pipeline = replace_ImageToTensor(cfg.data.test.pipeline)
dataset = build_dataset(cfg.data.test)
data_loader = build_dataloader(dataset, **test_loader_cfg)
cfg.model.train_cfg = None
model = build_detector(cfg.model, test_cfg=cfg.get('test_cfg'))
if cfg.get('fp16', None) is not None: wrap_fp16_model(model)
checkpoint = load_checkpoint(model, args.checkpoint, map_location='cpu')
if args.fuse_conv_bn: model = fuse_conv_bn(model)
model.CLASSES = checkpoint['meta'].get('CLASSES', dataset.CLASSES)
model = MMDataParallel(model, device_ids=[0])
outputs = single_gpu_test(model, data_loader, False, args.show_dir, .3)
assert len(outputs) == len(dataset) and all(len(per_class) == len(dataset.CLASSES) and per_class[0].shape[1] == 5 for per_class in outputs)
model = build_dp(model.module, get_device(), device_ids=[0])
again = single_gpu_test(model, data_loader)
assert all((a == b).all() for x, y in zip(outputs, again) for a, b in zip(x, y))
rank, _ = get_dist_info()
if rank == 0:
    mmcv.dump(outputs, args.out)
    eval_kwargs = cfg.get('evaluation', {}).copy()
    for key in ['interval', 'tmpdir', 'start', 'gpu_collect', 'save_best', 'rule', 'dynamic_intervals']: eval_kwargs.pop(key, None)
    eval_kwargs.update(dict(metric=args.eval, **(args.eval_options or {})))
    metric = dataset.evaluate(outputs, **eval_kwargs)
    mmcv.dump(dict(config=args.config, metric=metric), args.out.replace('.pkl', '.json'))
'''


def test_copied_train_and_test_scripts(place):
    "Train with the line in the file; test with `python -m detnb.as_mmdet`, the file untouched"
    said = fresh(TRAIN, place, 'tiny.py', '--work-dir', 'run', '--seed', 3, '--cfg-options', 'runner.max_epochs=1')
    assert 'bbox_mAP' in said and (place/'run'/'epoch_1.pth').is_file()
    saved = torch.load(place/'run'/'epoch_1.pth', weights_only=True)
    assert saved['meta']['mmdet_version'].startswith('2.28.2') and saved['meta']['CLASSES'] == ('ball', 'box', 'triangle', 'star', 'ring')
    (place/'test.py').write_text(TEST)
    done = subprocess.run([sys.executable, '-m', 'detnb.as_mmdet', 'test.py', 'tiny.py', 'run/latest.pth', '--out', 'r.pkl', '--eval', 'bbox', '--show-dir', 'shown'],
                          cwd=place, env={**os.environ, 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert set(json.loads((place/'r.json').read_text())['metric']) >= {'bbox_mAP', 'bbox_mAP_50'} and len(list((place/'shown').rglob('*.*'))) == 3


OWN_MODULES = '''
import detnb.as_mmdet
import sys
import torch, torch.nn as nn
from mmcv import Config
from mmcv.cnn import ConvModule, bias_init_with_prob, build_norm_layer, constant_init, kaiming_init, normal_init
from mmcv.runner import BaseModule, auto_fp16, force_fp32
from mmdet.core import (build_assigner, build_sampler, distance2bbox, images_to_levels, multi_apply, multiclass_nms, reduce_mean)
from mmdet.models import build_backbone, build_detector, build_head, build_loss, build_neck
from mmdet.models.backbones.resnet import BasicBlock
from mmdet.models.builder import BACKBONES, HEADS, LOSSES, NECKS
from mmdet.models.dense_heads.anchor_free_head import AnchorFreeHead
from mmdet.models.losses.utils import weighted_loss


@weighted_loss
def my_loss(pred, target): return (pred - target).abs().pow(1.5)

@LOSSES.register_module()
class PowerLoss(nn.Module):
    def __init__(self, reduction='mean', loss_weight=1.0): super().__init__(); self.reduction, self.loss_weight = reduction, loss_weight
    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
        return self.loss_weight * my_loss(pred, target, weight, reduction=reduction_override or self.reduction, avg_factor=avg_factor)

@BACKBONES.register_module()
class ThinNet(BaseModule):
    def __init__(self, widths=(8, 16, 32), norm_cfg=dict(type='BN'), init_cfg=dict(type='Kaiming', layer='Conv2d')):
        super().__init__(init_cfg)
        self.stem = ConvModule(3, widths[0], 3, stride=4, padding=1, norm_cfg=norm_cfg)
        self.stages = nn.ModuleList(ConvModule(a, b, 3, stride=2, padding=1, norm_cfg=norm_cfg) for a, b in zip((widths[0], *widths), widths))
        self.name, norm = build_norm_layer(norm_cfg, widths[0], postfix=1)
        self.add_module(self.name, norm)
        constant_init(norm, .5)
    def forward(self, x):
        x, outs = getattr(self, self.name)(self.stem(x)), []
        for stage in self.stages: x = stage(x); outs.append(x)
        return tuple(outs)

@NECKS.register_module()
class ThinNeck(BaseModule):
    def __init__(self, in_channels, out_channels, init_cfg=None):
        super().__init__(init_cfg)
        self.fp16_enabled = False
        self.convs = nn.ModuleList(ConvModule(c, out_channels, 1) for c in in_channels)
    @auto_fp16()
    def forward(self, inputs): return tuple(conv(x) for conv, x in zip(self.convs, inputs))

@HEADS.register_module()
class ThinHead(BaseModule):
    def __init__(self, num_classes, in_channels, loss=dict(type='PowerLoss'), init_cfg=None, train_cfg=None, test_cfg=None):
        super().__init__(init_cfg)
        self.fp16_enabled, self.num_classes = False, num_classes
        self.cls, self.loss_fn = nn.Conv2d(in_channels, num_classes + 4, 1), build_loss(loss)
        normal_init(self.cls, std=.01, bias=bias_init_with_prob(.01))
    def forward(self, feats): return multi_apply(self.forward_single, feats)
    def forward_single(self, x): return self.cls(x).split([self.num_classes, 4], 1)
    @force_fp32(apply_to=('cls_scores', 'bbox_preds'))
    def loss(self, cls_scores, bbox_preds, gt_bboxes, gt_labels, img_metas, gt_bboxes_ignore=None):
        assert all(c.dtype == torch.float32 for c in cls_scores)
        count = reduce_mean(cls_scores[0].new_tensor(float(sum(map(len, gt_labels))))).clamp(min=1)
        return dict(loss_cls=[self.loss_fn(c.sigmoid(), torch.zeros_like(c), avg_factor=count) for c in cls_scores], loss_bbox=[b.abs().mean() for b in bbox_preds])
    def forward_train(self, x, img_metas, gt_bboxes, gt_labels=None, gt_bboxes_ignore=None, proposal_cfg=None, **kwargs):
        return self.loss(*self(x), gt_bboxes, gt_labels, img_metas)
    def simple_test(self, feats, img_metas, rescale=False):
        scores, boxes = self(feats)
        flat, box = scores[0].flatten(2).transpose(1, 2).sigmoid(), boxes[0].flatten(2).transpose(1, 2).abs().cumsum(-1)
        return [multiclass_nms(b, torch.cat([s, s.new_zeros(len(s), 1)], 1), .001, dict(type='nms', iou_threshold=.5), 10) for s, b in zip(flat, box)]

cfg = dict(type='SingleStageDetector', backbone=dict(type='ThinNet'), neck=dict(type='ThinNeck', in_channels=[8, 16, 32], out_channels=8),
           bbox_head=dict(type='ThinHead', num_classes=2, in_channels=8))
model = build_detector(cfg, train_cfg=None, test_cfg=None)
model.init_weights()
metas = [dict(img_shape=(64, 64, 3), pad_shape=(64, 64, 3), scale_factor=1., filename='a.jpg')]
batch = dict(img=torch.rand(1, 3, 64, 64), img_metas=metas, gt_bboxes=[torch.tensor([[1., 1, 20, 20]])], gt_labels=[torch.tensor([1])])
for half in (False, True):
    for m in model.modules():
        if hasattr(m, 'fp16_enabled'): m.fp16_enabled = half
    out = model.train_step(batch, None)
    out['loss'].backward()
    assert out['num_samples'] == 1 and {'loss_cls', 'loss_bbox', 'loss'} <= set(out['log_vars']), out
assert len(multi_apply(lambda a, b: (a + b, a - b), [1, 2], [3, 4])) == 2
result = model.eval()(img=[batch['img']], img_metas=[metas], return_loss=False, rescale=False)
assert len(result[0]) == 2 and result[0][0].shape[1] == 5
print('all is well')
'''


def test_own_backbone_neck_head_and_loss(tmp_path): assert 'all is well' in fresh(OWN_MODULES, tmp_path)


PIPELINE_AND_HOOK = '''
import detnb.as_mmdet
import os.path as osp, sys
import mmcv, numpy as np, torch
from mmcv.parallel import DataContainer as DC
from mmcv.runner import (HOOKS, EpochBasedRunner, Hook, OptimizerHook, build_optimizer, build_runner, get_dist_info)
from mmcv.utils import Registry, build_from_cfg, is_list_of, print_log
from mmdet.apis import set_random_seed, train_detector
from mmdet.core import EvalHook
from mmdet.datasets import PIPELINES, build_dataloader, build_dataset
from mmdet.datasets.pipelines import Compose, LoadImageFromFile
from mmdet.datasets.pipelines.formating import to_tensor
from mmdet.models import build_detector

@PIPELINES.register_module()
class LoadThroughClient(LoadImageFromFile):
    def __call__(self, results):
        client = mmcv.FileClient(**self.file_client_args)
        name = osp.join(results['img_prefix'], results['img_info']['filename'])
        img = mmcv.imfrombytes(client.get(name), flag=self.color_type)
        results.update(filename=name, ori_filename=results['img_info']['filename'], img=img, img_shape=img.shape, ori_shape=img.shape, img_fields=['img'])
        return results

@PIPELINES.register_module()
class Dim:
    def __init__(self, by=.5): self.by = by
    def __call__(self, results):
        results['img'] = mmcv.imresize(mmcv.imrescale((results['img'] * self.by).astype(np.uint8), 1.), results['img'].shape[1::-1])
        return results
    def __repr__(self): return f'{type(self).__name__}(by={self.by})'

@PIPELINES.register_module()
class OwnBundle:
    def __call__(self, results):
        img = mmcv.impad_to_multiple(mmcv.imnormalize(results['img'], np.float32([120] * 3), np.float32([60] * 3), True), 32)
        results['pad_shape'] = img.shape
        results['img'] = DC(to_tensor(np.ascontiguousarray(img.transpose(2, 0, 1))), stack=True)
        for key in ('gt_bboxes', 'gt_labels'): results[key] = DC(to_tensor(results[key]))
        return results

@HOOKS.register_module()
class CountHook(Hook):
    seen = 0
    def after_train_iter(self, runner):
        if self.every_n_iters(runner, 1): type(self).seen += len(runner.outputs['log_vars']) > 0
    def after_train_epoch(self, runner): print_log(f'epoch {runner.epoch + 1}', logger=runner.logger)

cfg = mmcv.Config.fromfile(sys.argv[1])
cfg.data.train.pipeline = [dict(type='LoadThroughClient'), dict(type='LoadAnnotations', with_bbox=True), dict(type='Dim', by=.8), dict(type='Resize', img_scale=(96, 64)),
                           dict(type='RandomFlip', flip_ratio=.5), dict(type='OwnBundle'),
                           dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels'], meta_keys=['filename', 'ori_filename', 'img_shape', 'ori_shape', 'pad_shape', 'scale_factor', 'flip'])]
cfg.custom_hooks, cfg.work_dir, cfg.gpu_ids, cfg.runner.max_epochs = [dict(type='CountHook', priority='LOW')], 'hooked', [0], 1
set_random_seed(0, deterministic=False)
dataset = build_dataset(cfg.data.train)
model = build_detector(cfg.model)
model.init_weights()
model.CLASSES = dataset.CLASSES
train_detector(model, [dataset], cfg, distributed=False, validate=False)
assert CountHook.seen == 4 and is_list_of(cfg.custom_hooks, dict), CountHook.seen

# the same with the parts in hand
loader = build_dataloader(dataset, 2, 0, dist=False, shuffle=True, seed=0)
runner = build_runner(dict(type='EpochBasedRunner', max_epochs=1), default_args=dict(
    model=mmcv.parallel.MMDataParallel(model, device_ids=[0]) if hasattr(mmcv, 'parallel') else model, work_dir='by_hand', optimizer=build_optimizer(model, dict(type='SGD', lr=.001)),
    logger=mmcv.get_logger('mmdet'), meta=dict()))
runner.register_training_hooks(dict(policy='step', step=[1]), OptimizerHook(grad_clip=None), dict(interval=1), dict(interval=2, hooks=[dict(type='TextLoggerHook')]))
runner.register_hook(build_from_cfg(dict(type='CountHook'), HOOKS))
runner.run([loader], [('train', 1)])
assert CountHook.seen == 8 and osp.isfile('by_hand/epoch_1.pth')
assert set(torch.load('by_hand/epoch_1.pth', weights_only=True)['state_dict']) == set(model.state_dict())
print('all is well')
'''


def test_own_pipeline_and_hook(place): assert 'all is well' in fresh(PIPELINE_AND_HOOK, place, place/'tiny.py')


VIDEO = '''
import detnb.as_mmdet
import sys, time
import mmcv, numpy as np, torch
from mmcv.ops import batched_nms, nms
from mmcv.parallel import collate, scatter
from mmcv.runner import load_checkpoint
from mmdet.apis import inference_detector, init_detector, show_result_pyplot
from mmdet.core import get_classes
from mmdet.datasets.pipelines import Compose

video, out, config = sys.argv[1:4]
if video == '-':
    frames = [np.full((60, 90, 3), 20 * i, np.uint8) for i in range(4)]
else:
    reader = mmcv.VideoReader(video)
    assert reader.width and reader.fps > 0
    frames = [reader[i] for i in range(3)]
torch.manual_seed(0)
model = init_detector(config, None, device='cpu', cfg_options=dict(model=dict(test_cfg=dict(score_thr=.0, max_per_img=5))))
model.CLASSES = get_classes('coco')[:5]
bar = mmcv.ProgressBar(len(frames))
for i, frame in enumerate(mmcv.track_iter_progress(frames)):
    result = inference_detector(model, frame)
    found = model.show_result(frame, result, score_thr=0., wait_time=1, show=False)
    boxes, labels = np.vstack(result), np.concatenate([np.full(len(b), k) for k, b in enumerate(result)])
    kept = nms(torch.tensor(boxes[:, :4]), torch.tensor(boxes[:, 4]), .5)[1] if len(boxes) else []
    mmcv.imwrite(mmcv.imrescale(mmcv.bgr2rgb(found), .5), f'{out}/{i:03d}.png')
    bar.update()
show_result_pyplot(model, frames[0], result, score_thr=0., out_file=f'{out}/pyplot.png')

# the loop inside of inference_detector, as papers copy it
cfg = model.cfg.copy()
cfg.data.test.pipeline[0].type = 'LoadImageFromWebcam'
data = collate([Compose(cfg.data.test.pipeline)(dict(img=frames[0]))], samples_per_gpu=1)
device = next(model.parameters()).device
data['img_metas'] = [img_metas.data[0] for img_metas in data['img_metas']]
data['img'] = [img.data[0] for img in data['img']]
if next(model.parameters()).is_cuda: data = scatter(data, [device])[0]
with torch.no_grad(): by_hand = model(return_loss=False, rescale=True, **data)[0]
whole = inference_detector(model, frames[0])
for a, b in zip(by_hand, whole): np.testing.assert_allclose(a, b, atol=.01)                   # a hundredth of a pixel, in a frame of 640
print('all is well')
'''


def test_a_video_loop(place):
    clip = data_root() and data_root()/'demo'/'demo.mp4'
    said = fresh(VIDEO, place, clip if clip and clip.exists() else '-', 'frames', place/'tiny.py')
    assert 'all is well' in said and len(list((place/'frames').glob('*.png'))) >= 4


# The classic tutorial, with the old names, one line added and its install cells removed

@pytest.mark.skipif(not (KITTI and KITTI.is_dir()), reason='needs the KITTI-tiny pictures: set DETNB_DATA')
def test_the_classic_tutorial(tmp_path, monkeypatch):
    monkeypatch.setenv('KITTI_TINY', str(KITTI)); monkeypatch.setenv('TUTORIAL_WORK', str(tmp_path)); monkeypatch.setenv('DETNB_DATA', str(data_root()))
    good, text = run(run_notebook, str(root/'tests'/'notebooks'/'classic_tutorial.ipynb'), str(root), [])
    assert good, text[-5000:]
    log = [json.loads(line) for line in next(tmp_path.glob('run/*.log.json')).read_text().splitlines()]
    assert any(r.get('mode') == 'val' and 'mAP' in r for r in log) and (tmp_path/'result.jpg').stat().st_size > 5000
