"""What an evaluation found is checked, judged by the gates that were fixed before it, and judged again."""
