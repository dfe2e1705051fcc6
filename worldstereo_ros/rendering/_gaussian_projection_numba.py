"""Compiled loops that project 3-D Gaussians to the image plane (EWA splatting), and their derivatives.

The projection is linearised at the centre of each Gaussian (Zwicker et al. 2001, EWA Volume Splatting): with the
Jacobian J of the pinhole camera, the rotation W to camera axes, and a Gaussian of rotation R and standard deviations
S, T = J W R S, and the covariance in the image is T T^T plus a low-pass filter.
"""

from __future__ import annotations

import math

import numpy as np

from worldstereo_ros.rendering._gaussian_blending_numba import (
    BLUE,
    COLUMNS,
    DEPTH,
    GRADIENTS,
    GREEN,
    HALF_HEIGHT,
    HALF_WIDTH,
    MIN_ALPHA,
    OPACITY,
    RED,
    A,
    B,
    C,
    U,
    V,
)
from worldstereo_ros.utils.jit import compiled

LOW_PASS = 0.3  # px^2, added to the variances: a Gaussian is never narrower than a pixel
MAX_SIGMAS = 3.33  # beyond, exp(-x^2 / 2) is below 1/255
MAX_DETERMINANT = 1e30  # px^4, of the covariance; beyond it, single precision overflows
MAX_HALF_SIZE_PX = 1e6  # of the box of a Gaussian, so that it fits into an integer
FRUSTUM_MARGIN = 0.3  # of half the field of view; beyond it the Jacobian is that of its border, since J grows with x/z

# Values of a camera: centre (coarse and fine part, so that the subtraction is exact far from the origin), rotation
# camera_from_world by rows, focal lengths, principal point, near plane, and the range of x/z and y/z of the Jacobian.
CAMERA_VALUES = 24


@compiled
def _rotation(quaternions, i, R):
    """Writes the rotation of the quaternion i (w, x, y, z of any length) to R (3, 3); returns its squared norm."""
    number = quaternions.dtype.type
    w, x, y, z = quaternions[i, 0], quaternions[i, 1], quaternions[i, 2], quaternions[i, 3]
    square = w * w + x * x + y * y + z * z
    s = number(2.0) / square
    one = number(1.0)
    R[0, 0] = one - s * (y * y + z * z)
    R[0, 1] = s * (x * y - w * z)
    R[0, 2] = s * (x * z + w * y)
    R[1, 0] = s * (x * y + w * z)
    R[1, 1] = one - s * (x * x + z * z)
    R[1, 2] = s * (y * z - w * x)
    R[2, 0] = s * (x * z - w * y)
    R[2, 1] = s * (y * z + w * x)
    R[2, 2] = one - s * (x * x + y * y)
    return square


@compiled
def _camera_point(means, i, cam, point):
    """Writes the centre of Gaussian i in camera axes to `point` (3,)."""
    dx = (means[i, 0] - cam[0]) - cam[3]
    dy = (means[i, 1] - cam[1]) - cam[4]
    dz = (means[i, 2] - cam[2]) - cam[5]
    for row in range(3):
        point[row] = cam[6 + 3 * row] * dx + cam[7 + 3 * row] * dy + cam[8 + 3 * row] * dz


@compiled
def _image_axes(quaternions, scales, i, cam, point, R, V3, J, T):
    """Writes V3 = W R S, the Jacobian J = (j00, j02, j11, j12) and T = J V3; returns the squared norm of q.

    J is that of the pinhole camera at x/z and y/z, limited to the range of the camera.
    """
    square = _rotation(quaternions, i, R)
    for row in range(3):
        for column in range(3):
            total = cam[6 + 3 * row] * R[0, column]
            total += cam[7 + 3 * row] * R[1, column]
            total += cam[8 + 3 * row] * R[2, column]
            V3[row, column] = total * scales[i, column]
    inverse = point.dtype.type(1.0) / point[2]
    x = min(max(point[0] * inverse, cam[20]), cam[21])
    y = min(max(point[1] * inverse, cam[22]), cam[23])
    J[0] = cam[15] * inverse
    J[1] = -cam[15] * x * inverse
    J[2] = cam[16] * inverse
    J[3] = -cam[16] * y * inverse
    for column in range(3):
        T[0, column] = J[0] * V3[0, column] + J[1] * V3[2, column]
        T[1, column] = J[2] * V3[1, column] + J[3] * V3[2, column]
    return square


@compiled
def project(means, quaternions, scales, opacities, colours, cam, width, height, out, keys, start, stop):
    """Projects the Gaussians start..stop.

    Args:
        means: (N, 3) centres in the world.
        quaternions: (N, 4) rotations w, x, y, z, of any length but 0.
        scales: (N, 3) standard deviations along the rotated axes.
        opacities: (N,) in 0..1.
        colours: (N, 3).
        cam: (CAMERA_VALUES,).
        width, height: image size.
        out: (N, COLUMNS), written for Gaussians that are seen.
        keys: (N,) uint64, written: the bits of the depth and the index, which sort by depth; all ones if not seen.
        start, stop: range of Gaussians.
    """
    number = means.dtype.type
    one, half, low_pass = number(1.0), number(0.5), number(LOW_PASS)
    point, J = np.empty(3, means.dtype), np.empty(4, means.dtype)
    R, V3, T = np.empty((3, 3), means.dtype), np.empty((3, 3), means.dtype), np.empty((2, 3), means.dtype)
    for i in range(start, stop):
        keys[i] = np.uint64(0xFFFFFFFFFFFFFFFF)
        _camera_point(means, i, cam, point)
        if not (point[2] > cam[19] and point[2] < number(1e9) and opacities[i] >= number(MIN_ALPHA)):
            continue
        inverse = one / point[2]
        u = cam[15] * point[0] * inverse + cam[17]
        v = cam[16] * point[1] * inverse + cam[18]
        _image_axes(quaternions, scales, i, cam, point, R, V3, J, T)
        xx = T[0, 0] * T[0, 0] + T[0, 1] * T[0, 1] + T[0, 2] * T[0, 2] + low_pass
        xy = T[0, 0] * T[1, 0] + T[0, 1] * T[1, 1] + T[0, 2] * T[1, 2]
        yy = T[1, 0] * T[1, 0] + T[1, 1] * T[1, 1] + T[1, 2] * T[1, 2] + low_pass
        determinant = xx * yy - xy * xy
        sigmas = min(number(MAX_SIGMAS), math.sqrt(number(2.0) * math.log(opacities[i] / number(MIN_ALPHA))))
        half_width = min(sigmas * math.sqrt(xx), number(MAX_HALF_SIZE_PX))
        half_height = min(sigmas * math.sqrt(yy), number(MAX_HALF_SIZE_PX))
        if not (
            number(0.0) < determinant < number(MAX_DETERMINANT)
            and u + half_width > -half
            and u - half_width < number(width) - half
            and v + half_height > -half
            and v - half_height < number(height) - half
        ):
            continue
        out[i, U], out[i, V] = u, v
        out[i, A], out[i, B], out[i, C] = yy / determinant, -xy / determinant, xx / determinant
        out[i, OPACITY] = opacities[i]
        out[i, RED], out[i, GREEN], out[i, BLUE] = colours[i, 0], colours[i, 1], colours[i, 2]
        out[i, DEPTH] = point[2]
        out[i, HALF_WIDTH], out[i, HALF_HEIGHT] = half_width, half_height
        bits = np.uint64(np.uint32(np.float32(point[2]).view(np.int32)))
        keys[i] = (bits << np.uint64(32)) | np.uint64(i)


@compiled
def gather(projected, order, out, start, stop):
    """Copies the rows `order` of the projected Gaussians to `out`, from start to stop."""
    for k in range(start, stop):
        for column in range(COLUMNS):
            out[k, column] = projected[order[k], column]


@compiled
def project_backward(
    means, quaternions, scales, cam, gaussians, order, image_gradients, mean_gradients, quaternion_gradients,
    scale_gradients, opacity_gradients, colour_gradients, start, stop,
):  # fmt: skip
    """Takes the derivatives of the loss by the projected Gaussians start..stop to those by the Gaussians.

    Args:
        means, quaternions, scales, cam: see `project`.
        gaussians: (M, COLUMNS) in order of depth.
        order: (M,) indices of the Gaussians.
        image_gradients: (L, M, GRADIENTS) derivatives; the L parts, one of each thread, are added.
        mean_gradients, quaternion_gradients, scale_gradients, opacity_gradients, colour_gradients: arrays of the shapes
            of `project`, written.
        start, stop: range of the M.
    """
    number = means.dtype.type
    one, two, half, zero = number(1.0), number(2.0), number(0.5), number(0.0)
    point, J = np.empty(3, means.dtype), np.empty(4, means.dtype)
    R, V3, T = np.empty((3, 3), means.dtype), np.empty((3, 3), means.dtype), np.empty((2, 3), means.dtype)
    dT, dV, dR = np.empty((2, 3), means.dtype), np.empty((3, 3), means.dtype), np.empty((3, 3), means.dtype)
    dp, d = np.empty(3, means.dtype), np.empty(GRADIENTS, means.dtype)
    for k in range(start, stop):
        i = order[k]
        for column in range(GRADIENTS):
            d[column] = zero
            for layer in range(image_gradients.shape[0]):
                d[column] += image_gradients[layer, k, column]
        opacity_gradients[i] = d[OPACITY]
        colour_gradients[i, 0], colour_gradients[i, 1], colour_gradients[i, 2] = d[RED], d[GREEN], d[BLUE]
        _camera_point(means, i, cam, point)
        square = _image_axes(quaternions, scales, i, cam, point, R, V3, J, T)
        # The inverse covariance Q of the covariance P: dL/dP = -Q (dL/dQ) Q.
        a, b, c = gaussians[k, A], gaussians[k, B], gaussians[k, C]
        ga, gb, gc = d[A], half * d[B], d[C]
        p00, p01 = a * ga + b * gb, a * gb + b * gc
        p10, p11 = b * ga + c * gb, b * gb + c * gc
        dxx = -(p00 * a + p01 * b)
        dxy = -(p00 * b + p01 * c)
        dyy = -(p10 * b + p11 * c)
        for column in range(3):
            dT[0, column] = two * (dxx * T[0, column] + dxy * T[1, column])
            dT[1, column] = two * (dxy * T[0, column] + dyy * T[1, column])
        dj00 = dj02 = dj11 = dj12 = zero
        for column in range(3):
            dj00 += dT[0, column] * V3[0, column]
            dj02 += dT[0, column] * V3[2, column]
            dj11 += dT[1, column] * V3[1, column]
            dj12 += dT[1, column] * V3[2, column]
            dV[0, column] = J[0] * dT[0, column]
            dV[1, column] = J[2] * dT[1, column]
            dV[2, column] = J[1] * dT[0, column] + J[3] * dT[1, column]
        # The centre: u and v, the depth, and the Jacobian, which depends on x/z and y/z only within its range.
        fx, fy = cam[15], cam[16]
        inverse = one / point[2]
        x, y = point[0] * inverse, point[1] * inverse
        limited_x, limited_y = min(max(x, cam[20]), cam[21]), min(max(y, cam[22]), cam[23])
        dx, dy = d[U] * fx, d[V] * fy  # by x/z and y/z
        if x == limited_x:
            dx -= dj02 * fx * inverse
        if y == limited_y:
            dy -= dj12 * fy * inverse
        dinverse = fx * (dj00 - dj02 * limited_x) + fy * (dj11 - dj12 * limited_y)
        dp[0] = dx * inverse
        dp[1] = dy * inverse
        dp[2] = d[DEPTH] - inverse * (dx * x + dy * y + dinverse * inverse)
        for column in range(3):
            mean_gradients[i, column] = cam[6 + column] * dp[0] + cam[9 + column] * dp[1] + cam[12 + column] * dp[2]
        # V3 = W R S.
        for column in range(3):
            total = zero
            for row in range(3):
                by_world = cam[6 + row] * dV[0, column] + cam[9 + row] * dV[1, column] + cam[12 + row] * dV[2, column]
                total += by_world * R[row, column]
                dR[row, column] = by_world * scales[i, column]
            scale_gradients[i, column] = total
        _rotation_backward(quaternions, i, square, R, dR, quaternion_gradients)


@compiled
def _rotation_backward(quaternions, i, square, R, dR, gradients):
    """Takes the derivatives by a rotation to those by its quaternion, whose length has no effect."""
    number = quaternions.dtype.type
    inverse = number(1.0) / math.sqrt(square)
    w, x = quaternions[i, 0] * inverse, quaternions[i, 1] * inverse
    y, z = quaternions[i, 2] * inverse, quaternions[i, 3] * inverse
    two = number(2.0)
    dw = two * (x * (dR[2, 1] - dR[1, 2]) + y * (dR[0, 2] - dR[2, 0]) + z * (dR[1, 0] - dR[0, 1]))
    dx = two * (
        w * (dR[2, 1] - dR[1, 2]) + y * (dR[0, 1] + dR[1, 0]) + z * (dR[0, 2] + dR[2, 0])
        - two * x * (dR[1, 1] + dR[2, 2])
    )  # fmt: skip
    dy = two * (
        w * (dR[0, 2] - dR[2, 0]) + x * (dR[0, 1] + dR[1, 0]) + z * (dR[1, 2] + dR[2, 1])
        - two * y * (dR[0, 0] + dR[2, 2])
    )  # fmt: skip
    dz = two * (
        w * (dR[1, 0] - dR[0, 1]) + x * (dR[0, 2] + dR[2, 0]) + y * (dR[1, 2] + dR[2, 1])
        - two * z * (dR[0, 0] + dR[1, 1])
    )  # fmt: skip
    along = dw * w + dx * x + dy * y + dz * z
    gradients[i, 0] = (dw - along * w) * inverse
    gradients[i, 1] = (dx - along * x) * inverse
    gradients[i, 2] = (dy - along * y) * inverse
    gradients[i, 3] = (dz - along * z) * inverse
