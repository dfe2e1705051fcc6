"""Declares the node's parameters in ROS, reads their values and validates changes at run time."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

from worldstereo_ros.ros.node.parameter_text import allowed_values
from worldstereo_ros.ros.node.parameters import (
    CONFIGURE,
    DYNAMIC,
    START,
    ConfigurationError,
    NodeParameters,
    Row,
    check_value,
    make_parameters,
    ros_type,
    table,
)
from worldstereo_ros.ros.node.qos_overrides import PREFIX, check_qos_override


class ParameterServer:
    """Declares the rows of `parameters.table` on a node.

    Args:
        node: node on which the parameters are declared.
        is_configured: returns whether the node is configured.
        apply: called with all values after a change while the node is configured.

    Attributes:
        problems: error messages by parameter name for values given at the start that are not usable. The node starts
            with the defaults instead, and configure fails until the values are corrected.
    """

    def __init__(
        self, node: Node, *, is_configured: Callable[[], bool], apply: Callable[[NodeParameters], None]
    ) -> None:
        self.problems: dict[str, str] = {}
        self._node = node
        self._is_configured = is_configured
        self._apply = apply
        for row in table():
            self._declare(row)
        for name, parameter in node._parameter_overrides.items():
            problem = check_qos_override(name, parameter.value) if name.startswith(PREFIX) else ""
            if problem:
                self.problems[name] = problem
        self._warn_of_unknown_names()
        node.add_on_set_parameters_callback(self._validate)
        if hasattr(node, "add_post_set_parameters_callback"):
            node.add_post_set_parameters_callback(self._on_set)

    def _declare(self, row: Row) -> None:
        default = row.metadata["default"]
        descriptor = _descriptor(row)
        override = self._node._parameter_overrides.get(row.name)
        value = default
        if override is not None:
            try:
                value = check_value(row, override.value)
            except ConfigurationError as error:
                self.problems[row.name] = str(error)
        try:
            self._node.declare_parameter(row.name, value, descriptor, ignore_override=True)
        except ParameterException as error:  # ROS rounds ranges differently
            self.problems[row.name] = f"The parameter '{row.name}' is {value}: {error}."
            self._node.declare_parameter(row.name, default, descriptor, ignore_override=True)

    def _warn_of_unknown_names(self) -> None:
        """Logs names given at the start that no parameter has; rclpy ignores them without a word.

        A warning and not an error: a parameter file for `/**` may hold parameters of other nodes.
        """
        names = [row.name for row in table()]
        for name in self._node._parameter_overrides:
            if self._node.has_parameter(name) or name.startswith(PREFIX):
                continue
            similar = difflib.get_close_matches(name, names, n=3)
            hint = f" Similar names: {', '.join(similar)}." if similar else ""
            self._node.get_logger().warning(f"The parameter '{name}' is unknown and has no effect.{hint}")

    def read(self) -> NodeParameters:
        """Returns the current values.

        Raises:
            ConfigurationError: a value given at the start is not usable, or two values contradict each other.
        """
        if self.problems:
            raise ConfigurationError(" ".join(self.problems.values()))
        return make_parameters({row.name: self._node.get_parameter(row.name).value for row in table()})

    def _validate(self, changed: list[Parameter]) -> SetParametersResult:
        """Accepts or rejects changes; applies them on Humble only, which has no callback after a change."""
        rows = {row.name: row for row in table()}
        values = {row.name: self._node.get_parameter(row.name).value for row in table()}
        for parameter in changed:
            row = rows.get(parameter.name)
            if row is None:
                continue
            try:
                values[row.name] = check_value(row, parameter.value)
                if row.metadata["applies"] == CONFIGURE and self._is_configured():
                    raise ConfigurationError(
                        f"The parameter '{row.name}' is read when the node is configured. Clean the node up first "
                        "(ros2 lifecycle set NODE deactivate, then cleanup), set it, and configure again."
                    )
            except ConfigurationError as error:
                return SetParametersResult(successful=False, reason=str(error))
        if self._is_configured():
            try:
                parameters = make_parameters(values)
            except ConfigurationError as error:
                return SetParametersResult(successful=False, reason=str(error))
            if not hasattr(self._node, "add_post_set_parameters_callback"):
                self._apply(parameters)
        return SetParametersResult(successful=True)

    def _on_set(self, changed: list[Parameter]) -> None:
        for parameter in changed:
            self.problems.pop(parameter.name, None)
        if self._is_configured() and any(row.name == p.name for row in table() for p in changed):
            self._apply(self.read())


def _descriptor(row: Row) -> ParameterDescriptor:
    info = row.metadata
    unit = f" [{info['unit']}]" if info["unit"] else ""
    descriptor = ParameterDescriptor(
        name=row.name,
        dynamic_typing=row.name in DYNAMIC,  # `check_value` converts them
        description=info["description"] + unit,
        read_only=info["applies"] == START,
        additional_constraints=allowed_values(row) if info["choices"] else "",
    )
    if info["low"] is not None:
        if ros_type(row) == "integer":
            descriptor.integer_range = [IntegerRange(from_value=info["low"], to_value=info["high"], step=1)]
        else:
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=float(info["low"]), to_value=float(info["high"]), step=0.0)
            ]
    return descriptor
