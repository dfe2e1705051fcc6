"""Checks of the requests for transitions of a lifecycle node."""

from __future__ import annotations

from lifecycle_msgs.srv import ChangeState
from rclpy.lifecycle import LifecycleNode


def check_transitions(node: LifecycleNode) -> None:
    """Answers requests for impossible transitions with a failure; rclpy raises them out of the executor.

    Args:
        node: a node whose services exist already.
    """
    service, machine = node._service_change_state, node._state_machine
    change_state = service.callback

    def checked(request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
        transition, available = request.transition, machine.available_transitions
        if not any(
            transition.label == label if transition.label else transition.id == id_ for id_, label, *_ in available
        ):
            labels = ", ".join(label for _, label, *_ in available) or "none"
            node.get_logger().warning(
                f"The transition '{transition.label or transition.id}' is not possible while "
                f"{machine.current_state[1]}; possible: {labels}."
            )
            response.success = False
            return response
        return change_state(request, response)

    service.callback = checked
