"""What one process does, on one machine or many: tasks of experiments learned side by side, many images, the web service.

`launcher=ray`, `launcher=slurm`: each task whose inputs are ready is a job of its own, in a run folder of its own. A last job
puts the tasks together into the run folder, as if one run had learned them all. `img2img run` and `img2img serve` with
`--launcher ray` are `ray_images` and `ray_service`.
"""
