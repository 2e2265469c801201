/* Stands for a library of CUDA, or NCCL, when the plugin was linked; it is not there when the plugin is loaded. */
int gone(void);
int gone(void)
{
    return 0;
}
