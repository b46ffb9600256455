import uPlot from "uplot";
import css from "uplot/dist/uPlot.min.css";
export { uPlot, css };
