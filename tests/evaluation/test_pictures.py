import cv2
import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from torch import nn

from lift_det import BilinearUpsample, FeatureExtractor, LiFT, LiFTFeaturePyramid, ViT
from lift_det.evaluation import draw_features, draw_predictions, draw_upsampled
from lift_det.modeling.postprocess import _json_rles


class Oracle(nn.Module):
    """Predicts one square, sure of it or not."""

    def __init__(self, score, rle=False):
        super().__init__()
        self.score, self.rle = score, rle

    def forward(self, batch):
        assert not self.training
        mask = torch.zeros(1, 64, 64)
        mask[:, 8:40, 8:40] = 1
        instances = Instances((64, 64))
        instances.pred_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]]))
        if self.rle:  # as GeneralizedRCNN(mask_format="rle")
            instances.pred_masks_rle = _json_rles(torch.ones(1, 28, 28), instances.pred_boxes.tensor, (64, 64), 0.5)
        else:
            instances.pred_masks = BitMasks(mask).tensor
        instances.pred_classes = torch.tensor([0])
        instances.scores = torch.tensor([self.score])
        return [{"instances": instances}]


def _draw(tmp_path, score, rle=False):
    cv2.imwrite(str(tmp_path / "image.png"), np.full((64, 64, 3), 90, np.uint8))
    polygon = [8, 8, 40, 8, 40, 40, 8, 40]
    annotation = {"bbox": [8, 8, 40, 40], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "segmentation": [polygon]}
    dicts = [{"file_name": str(tmp_path / "image.png"), "annotations": [annotation]}]
    np.random.seed(0)  # detectron2 draws its colours at random, and one may be the image's grey
    model = Oracle(score, rle).train()
    path = tmp_path / f"{score}.png"
    draw_predictions(model, dicts, Metadata(thing_classes=["square"]), lambda d: d, path)
    assert model.training  # as it was
    return cv2.imread(str(path))


def test_predictions_stand_beside_the_ground_truth(tmp_path):
    sure, unsure = _draw(tmp_path, 0.9), _draw(tmp_path, 0.1)
    assert sure.shape == unsure.shape

    def drawn_on(picture, half):
        """The share of the ground truth's (0) or the prediction's (1) cell that is not the grey image any more."""
        cell = np.array_split(picture[60:380], 2, axis=1)[half][:, 20:-20]
        return (np.abs(cell.astype(int) - 90).max(-1) > 8).mean()

    # the square is a quarter of the image; below the threshold only the ground truth is drawn
    assert drawn_on(sure, 0) > 0.2 and drawn_on(sure, 1) > 0.2
    assert drawn_on(unsure, 0) > 0.2 and drawn_on(unsure, 1) == 0


def test_masks_as_rle_look_the_same(tmp_path):
    assert np.array_equal(_draw(tmp_path, 0.9), _draw(tmp_path, 0.9, rle=True))


def test_features_have_a_row_for_each_image(tmp_path):
    net = ViT(img_size=64, patch_size=8, embed_dim=32, depth=1, num_heads=2, pretrain_img_size=64)
    backbone = LiFTFeaturePyramid(net, LiFT(32, 8), "last_feat", 8, (1, 0.5, 0.25))
    images = torch.rand(2, 3, 64, 64) * 255
    draw_features(backbone, images, torch.full((3, 1, 1), 120.0), torch.full((3, 1, 1), 60.0), tmp_path / "f.png")
    picture = cv2.imread(str(tmp_path / "f.png"))
    assert picture.shape[0] > 2 * 384 and picture.shape[1] > 4 * 384
    # an untrained residual LiFT is bilinear: the last two columns show the same
    cell = picture.shape[1] // 4
    third, fourth = picture[40:400, 2 * cell : 2 * cell + 380], picture[40:400, 3 * cell : 3 * cell + 380]
    assert np.abs(third.astype(int) - fourth.astype(int)).mean() < 1
    assert picture[40:400, cell : cell + 380].std() > 20


def test_upsampled_features_stand_between_the_reduced_and_the_true_ones(tmp_path):
    torch.manual_seed(0)
    net = ViT(img_size=64, patch_size=8, embed_dim=32, depth=1, num_heads=2, pretrain_img_size=64)
    upsamplers = {"bilinear": BilinearUpsample(), "LiFT": LiFT(32, 8)}
    images = torch.rand(2, 3, 64, 64) * 255
    statistics = torch.full((3, 1, 1), 120.0), torch.full((3, 1, 1), 60.0)
    draw_upsampled(FeatureExtractor(net), upsamplers, images, *statistics, 1, tmp_path / "f.png")
    picture = cv2.imread(str(tmp_path / "f.png")).astype(int)
    columns = np.array_split(picture[40:400], 5, axis=1)  # image, reduced, bilinear, LiFT, true
    assert picture.shape[0] > 2 * 384
    inside = [column[:, 20:-20] for column in columns]
    # the reduced map has 4×4 cells, the others 8×8: a cell is one colour
    assert np.ptp(inside[1][10:80, 10:60], axis=(0, 1)).max() == 0
    assert np.ptp(inside[4][10:80, 10:60], axis=(0, 1)).max() > 0
    assert np.abs(inside[2] - inside[3]).mean() < 1 and np.abs(inside[2] - inside[4]).mean() > 5
