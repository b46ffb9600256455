// What the page gives the views, and what they leave in it for one another.
declare var __nbprocs_texts: Record<string, string> | undefined;
declare var __nbprocs_assets: Map<string, Promise<any>> | undefined; // a module each, whose exports the types of its package say
declare var __nbprocs_made: Map<Element, unknown> | undefined;

declare module "*.css" {
  const text: string;
  export default text;
}
