"""The click model: data, training, calibration, uncertainty."""
