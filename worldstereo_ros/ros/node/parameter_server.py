"""Declares the parameter table in ROS, reads it back, and checks changes at run time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

from worldstereo_ros.ros.node.parameters import (
    CONFIGURE,
    START,
    ConfigurationError,
    NodeParameters,
    check_value,
    kind,
    limits,
    make_parameters,
    table,
)


class ParameterServer:
    """The node's side of the parameter table.

    Attributes:
        problems: sentences by parameter name about values given at the start that cannot be used. The node starts
            with the default instead, so that it can say so; configure fails until the value is set right.
    """

    def __init__(self, node: Node, *, configured: Callable[[], bool], apply: Callable[[NodeParameters], None]) -> None:
        self.problems: dict[str, str] = {}
        self._node = node
        self._configured = configured
        self._apply = apply
        for row in table():
            self._declare(row)
        node.add_on_set_parameters_callback(self._validate)
        if hasattr(node, "add_post_set_parameters_callback"):
            node.add_post_set_parameters_callback(self._applied)

    def _declare(self, row: Field[Any]) -> None:
        default = row.metadata["default"]
        descriptor = _descriptor(row)
        given = self._node._parameter_overrides.get(row.name)
        value = default
        if given is not None:
            try:
                value = check_value(row, given.value)
            except ConfigurationError as error:
                self.problems[row.name] = str(error)
        try:
            self._node.declare_parameter(row.name, value, descriptor, ignore_override=True)
        except ParameterException as error:  # a range that rounds differently in ROS
            self.problems[row.name] = f"The parameter '{row.name}' is {value}: {error}."
            self._node.declare_parameter(row.name, default, descriptor, ignore_override=True)

    def read(self) -> NodeParameters:
        """All values now.

        Raises:
            ConfigurationError: one given at the start is not usable, or two do not go together.
        """
        if self.problems:
            raise ConfigurationError(" ".join(self.problems.values()))
        return make_parameters({row.name: self._node.get_parameter(row.name).value for row in table()})

    def _validate(self, parameters: list[Parameter]) -> SetParametersResult:
        """Decides only; it changes nothing."""
        rows = {row.name: row for row in table()}
        values = {row.name: self._node.get_parameter(row.name).value for row in table()}
        for parameter in parameters:
            row = rows.get(parameter.name)
            if row is None:
                continue
            try:
                values[row.name] = check_value(row, parameter.value)
                if row.metadata["applies"] == CONFIGURE and self._configured():
                    raise ConfigurationError(
                        f"The parameter '{row.name}' is read when the node is configured; clean the node up first "
                        "(ros2 lifecycle set NODE deactivate, then cleanup), set it, and configure again."
                    )
            except ConfigurationError as error:
                return SetParametersResult(successful=False, reason=str(error))
        if self._configured():
            try:
                settings = make_parameters(values)
            except ConfigurationError as error:
                return SetParametersResult(successful=False, reason=str(error))
            if not hasattr(self._node, "add_post_set_parameters_callback"):  # Humble has none
                self._apply(settings)
        return SetParametersResult(successful=True)

    def _applied(self, parameters: list[Parameter]) -> None:
        for parameter in parameters:
            self.problems.pop(parameter.name, None)
        if self._configured() and any(row.name == p.name for row in table() for p in parameters):
            self._apply(self.read())


def _descriptor(row: Field[Any]) -> ParameterDescriptor:
    info = row.metadata
    unit = f" [{info['unit']}]" if info["unit"] else ""
    descriptor = ParameterDescriptor(
        name=row.name,
        description=info["description"] + unit,
        read_only=info["applies"] == START,
        additional_constraints=limits(row) if info["choices"] else "",
    )
    if info["low"] is not None:
        if kind(row) == "integer":
            descriptor.integer_range = [IntegerRange(from_value=info["low"], to_value=info["high"], step=1)]
        else:
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=float(info["low"]), to_value=float(info["high"]), step=0.0)
            ]
    return descriptor
