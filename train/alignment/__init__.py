"""List-wise alignment: lists are drawn, judged by the click model, and preferred accordingly."""
